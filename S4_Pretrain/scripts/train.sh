#!/usr/bin/env bash
# S4P pre-training on one or several machines; see USAGE.
set -euo pipefail
TREE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
source "$TREE/../scripts/launch.sh"

USAGE="usage: bash train.sh GPUS PORT BACKBONE INIT [options of train.py]

  GPUS      GPUs of this machine to use; 0 runs on the CPU (CPU_PROCESSES processes, default 1)
  PORT      a free port on the first machine, for example 12345
  BACKBONE  vit_t, vit_s, vit_b, vit_l, vit_h, vit_g, swin_t, swin_s, swin_b or swin_l
            (sizes: python -m s5.params)
  INIT      initial weights: mae, timm, none, or the path of a checkpoint

  bash train.sh 8 12345 vit_b mae
  bash train.sh 8 12345 vit_b mae --resume
  bash train.sh 0 12345 vit_t none --cfg-options data_root=/data/S5 schedule.total_iters=1000
  CONFIG=my.yaml WORK_DIR=/results/run1 bash train.sh 2 12345 vit_l weights/vit_l.pth
  NNODES=2 NODE_RANK=0 MASTER_ADDR=node0 bash train.sh 8 12345 vit_h mae     (on node1: NODE_RANK=1)

Environment: CONFIG (default S4_Pretrain/configs/pretrain.yaml), WORK_DIR (default work_dirs/s4p_BACKBONE in the
repository), CPU_PROCESSES, NNODES, NODE_RANK, MASTER_ADDR."

[[ $# -ge 4 ]] || s5_usage "expected GPUS PORT BACKBONE INIT, got $# argument(s)"
GPUS=$1 PORT=$2 BACKBONE=$3 INIT=$4
shift 4

s5_launch "$GPUS" "$PORT" "$TREE/train.py" \
  --config "${CONFIG:-$TREE/configs/pretrain.yaml}" \
  --work-dir "${WORK_DIR:-$S5_ROOT/work_dirs/s4p_$BACKBONE}" \
  --backbone "$BACKBONE" --init "$INIT" "$@"
