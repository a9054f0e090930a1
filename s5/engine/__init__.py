"""Training: configuration, checkpoints, optimisation, logging and launching."""
