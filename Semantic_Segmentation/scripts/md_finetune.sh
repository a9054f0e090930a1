#!/usr/bin/env bash
# Multi-dataset fine-tuning on one or several machines; see USAGE.
set -euo pipefail
TREE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
source "$TREE/../scripts/launch.sh"

USAGE="usage: bash md_finetune.sh GPUS PORT BACKBONE LOAD [CHECKPOINT] [options of md_finetune.py]

  GPUS        GPUs of this machine to use; 0 runs on the CPU (CPU_PROCESSES processes, default 1)
  PORT        a free port on the first machine, for example 1156
  BACKBONE    such as vit_b, vit_b_rvsa, swin_b, dinov3_l or timm:NAME, with _moe for task-specific experts
              (all, with sizes: python -m s5.params)
  LOAD        True: start from CHECKPOINT; False: from random weights
  CHECKPOINT  weights of S4P, ours or published, with or without .pth

  bash md_finetune.sh 2 1156 vit_b_moe True Your/Path/vit_b_s4p_upernet
  bash md_finetune.sh 2 1156 vit_b_moe True Your/Path/vit_b_s4p_upernet --resume
  bash md_finetune.sh 1 1156 vit_l True weights/vit_l_s4p_upernet.pth --tasks loveda potsdam
  CONFIG=my.yaml WORK_DIR=/results/run1 bash md_finetune.sh 0 1156 vit_t False

Environment: CONFIG (default Semantic_Segmentation/configs/rsseg.yaml), WORK_DIR (default work_dirs/mdf_BACKBONE
in the repository), CPU_PROCESSES, NNODES, NODE_RANK, MASTER_ADDR."

[[ $# -ge 4 ]] || s5_usage "expected GPUS PORT BACKBONE LOAD, got $# argument(s)"
GPUS=$1 PORT=$2 BACKBONE=$3 LOAD=$4
shift 4

case $LOAD in
  [Tt]rue | TRUE)
    [[ $# -ge 1 && $1 != --* ]] || s5_usage "LOAD is True: expected a CHECKPOINT after it"
    LOADING=(--load-network True --init "$1")
    shift
    ;;
  [Ff]alse | FALSE)
    LOADING=(--load-network False)
    [[ $# -eq 0 || $1 == --* ]] || shift # a checkpoint that is not to be loaded
    ;;
  *) s5_usage "LOAD must be True or False, got '$LOAD'" ;;
esac

s5_launch "$GPUS" "$PORT" "$TREE/md_finetune.py" \
  --config "${CONFIG:-$TREE/configs/rsseg.yaml}" \
  --work-dir "${WORK_DIR:-$S5_ROOT/work_dirs/mdf_$BACKBONE}" \
  --backbone "$BACKBONE" "${LOADING[@]}" "$@"
