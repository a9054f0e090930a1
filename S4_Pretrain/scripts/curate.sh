#!/usr/bin/env bash
# Curation of unlabeled images on one or several machines; see USAGE.
set -euo pipefail
TREE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
source "$TREE/../scripts/launch.sh"

USAGE="usage: bash curate.sh CONFIG [options of python -m s5.curate]

  CONFIG    configuration, for example S4_Pretrain/configs/curate.yaml

  bash curate.sh my.yaml
  GPUS=8 bash curate.sh my.yaml --cfg-options select.count=100000
  NNODES=2 NODE_RANK=0 MASTER_ADDR=node0 GPUS=8 bash curate.sh my.yaml     (on node1: NODE_RANK=1)

Environment: GPUS (default: all of this machine; 0 runs on the CPU in CPU_PROCESSES processes, default 1), PORT
(default 29400), NNODES, NODE_RANK, MASTER_ADDR. An interrupted run continues when the command is given again,
also with another number of GPUs."

[[ $# -ge 1 ]] || s5_usage "expected CONFIG"
CONFIG=$1
shift

s5_launch "${GPUS:-$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)}" "${PORT:-29400}" "$TREE/curate.py" "$CONFIG" "$@"
