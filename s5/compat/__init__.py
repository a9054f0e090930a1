"""What makes other packages run well: mmcv's operators, attention kernels, linear layers on CPUs, memory."""
