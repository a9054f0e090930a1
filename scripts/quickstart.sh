#!/usr/bin/env bash
# From an empty machine to trained models: creates the environment, then runs the stages below on generated images.
# Results go to work_dirs/quickstart/. Running it again keeps the generated images and trains from scratch. On a slow
# machine all stages are shortened to fit into about 15 minutes; S5_QUICKSTART=whole trains all steps.
#
#   bash scripts/quickstart.sh [options of S4_Pretrain/train.py]     for example: bash scripts/quickstart.sh --device cpu
#
# S4P trains an EfficientNet-Lite0 from weights of ImageNet, or --backbone from random weights or --init. --device and
# --backbone apply to all stages, other options only to the runs of S4P and of its labels alone; --init and --init-bands
# to the first of these, from whose model the others start. Fine-tuning and detection have an expert for each task if
# the backbone has a place for them: a ViT does (--backbone vit_t), EfficientNet does not.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

OUT=work_dirs/quickstart # relative to the repository, main's working directory
TREE=Semantic_Segmentation
DETECTION=Object_Detection
BACKBONE=timm:tf_efficientnet_lite0 # unless another one is given
WEIGHTS=$OUT/data/tf_efficientnet_lite0.pth

# Keeps the scenes of an earlier run, or replaces them if this version generates different ones.
make_data() {
  "$S5_PYTHON" -m scenes --out "$OUT/data" --labeled 10 --unlabeled 500 --overwrite &&
    "$S5_PYTHON" -m scenes.junk "$OUT/data/junk" --count 20 &&
    "$S5_PYTHON" -m scenes.mdf_data "$OUT/data/mdf" &&
    "$S5_PYTHON" -m scenes.det_data "$OUT/data/det" &&
    "$S5_PYTHON" -m experiments.imagenet_weights "$WEIGHTS"
}

PERCENT=100 # of the steps to train

# plan [options of train.py]: measures the speed, prints what is to come, and sets PERCENT.
plan() {
  PERCENT=$("$S5_PYTHON" -m experiments.quickstart_plan "$@") || return
  [[ $PERCENT =~ ^[0-9]+$ ]] || s5_fail "the plan is no number: $PERCENT"
}

# steps N: prints the number of steps to train instead of N.
steps() {
  echo $(($1 * PERCENT / 100))
}

# pretrain NAME [options]: an S4P run into $OUT/NAME.
pretrain() {
  local name=$1 total
  shift
  total=$(steps "$(setting schedule.total_iters 500 "$@")")
  rm -rf "${OUT:?}/$name"
  "$S5_PYTHON" S4_Pretrain/train.py --config configs/quickstart.yaml --work-dir "$OUT/$name" \
    --cfg-options "fixmatch.ramp_iters=$((total * 15 / 100))" "$@" --cfg-options "schedule.total_iters=$total"
}

# curate BACKBONE DEVICE: chooses what S4P trains on, with the segmentor trained on the labels alone.
curate() {
  rm -rf "${OUT:?}/curated"
  "$S5_PYTHON" -m s5.curate run configs/quickstart_curate.yaml --device "$2" \
    --cfg-options "checkpoint=$OUT/supervised/$(file_name "$1")_s4p_upernet"
}

# fine_tune BACKBONE DEVICE CHECKPOINT: one model for all datasets, from S4P weights, with the same command as for users.
fine_tune() {
  rm -rf "${OUT:?}/mdf"
  CONFIG=configs/quickstart_mdf.yaml WORK_DIR=$OUT/mdf bash $TREE/scripts/md_finetune.sh \
    "$(gpus "$2")" "$(free_port)" "$1" True "$3" --cfg-options "schedule.steps_per_epoch=$(steps 30)"
}

# apply BACKBONE DEVICE: scores on the held-out scenes of every task, and overlays on other scenes.
apply() {
  local model
  model=$OUT/mdf/$(file_name "$1")_mdf.pth
  "$S5_PYTHON" $TREE/evaluate.py "$model" --device "$2" &&
    "$S5_PYTHON" $TREE/predict.py "$model" "$OUT/data/labeled/scenes/val/images" \
      --out "$OUT/mdf/predictions" --tasks all --device "$2"
}

# detect BACKBONE DEVICE CHECKPOINT: one detector for both sets of classes, from the backbone of S4P.
detect() {
  rm -rf "${OUT:?}/det"
  "$S5_PYTHON" $DETECTION/tools/train.py $DETECTION/configs/obb/oriented_rcnn/small/vit_t_moe_scenes.py \
    --work-dir "$OUT/det" --init "$3" --device "$2" \
    --cfg-options backbone="$1" data_root="$OUT/data/det" "schedule.steps_per_epoch=$(steps 14)"
}

# find_objects BACKBONE DEVICE: scores on the held-out scenes of both tasks, and sliding-window detections in other,
# larger scenes, with windows of the training size.
find_objects() {
  local model
  model=$OUT/det/$(file_name "$1")_det.pth
  "$S5_PYTHON" $DETECTION/tools/test.py "$OUT/det/config.yaml" "$model" --device "$2" &&
    "$S5_PYTHON" $DETECTION/tools/predict.py "$model" \
      "$OUT/data/labeled/scenes/val/images/00000*.png" --out "$OUT/det/predictions" --window 128 --overlap 32 \
      --device "$2"
}

report() {
  "$S5_PYTHON" -m experiments.quickstart_report "$OUT"
}

# option NAME DEFAULT [ARGUMENT...]: prints the value of an option in the arguments; the last one wins.
option() {
  local name=$1 value=$2
  shift 2
  while (($#)); do
    case $1 in
      "$name") value=${2:-} ;;
      "$name"=*) value=${1#*=} ;;
    esac
    shift
  done
  echo "$value"
}

# setting KEY DEFAULT [ARGUMENT...]: prints the value of KEY=VALUE in the arguments; the last one wins.
setting() {
  local key=$1 value=$2 argument
  shift 2
  for argument in "$@"; do
    [[ $argument != "$key="* ]] || value=${argument#*=}
  done
  echo "$value"
}

# file_name BACKBONE: prints its name as part of a file's name.
file_name() {
  echo "${1//:/_}"
}

# with_experts BACKBONE: prints its name with experts, or as it is if it cannot have any.
with_experts() {
  local channels
  channels=$("$S5_PYTHON" -c \
    'import s5.backbones as b, sys; print(b.get_architecture(sys.argv[1]).max_expert_channels)' "$1") || return
  ((channels)) && echo "${1}_moe" || echo "$1"
}

# gpus DEVICE: prints the number of GPUs for md_finetune.sh.
gpus() {
  case $1 in
    cpu) echo 0 ;;
    cuda) echo 1 ;;
    *) "$S5_PYTHON" -c 'import torch; print(int(torch.cuda.is_available()))' ;;
  esac
}

free_port() {
  "$S5_PYTHON" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# stage TITLE COMMAND...: runs a stage under a heading and prints how long it took.
stage() {
  local title=$1 start=$SECONDS
  shift
  printf '\n== %s\n' "$title"
  "$@" || s5_fail "'$title' failed after $((SECONDS - start)) s; see the messages above"
  printf '== done in %d s\n' $((SECONDS - start))
}

main() {
  stage "Environment" s5_install
  cd "$S5_ROOT"
  local start=$SECONDS backbone device name model
  backbone=$(option --backbone "" "$@") device=$(option --device auto "$@")
  if [[ -z $backbone ]]; then
    backbone=$BACKBONE
    set -- --init "$WEIGHTS" "$@"
  fi
  set -- --backbone "$backbone" --init none "$@" # what comes last wins
  name=$(file_name "$backbone")
  # The bands are those of our own weights, whatever the initial ones were trained on.
  local from_labels=(--init "$OUT/supervised/${name}_s4p_upernet" --init-bands 1,2,3)
  local alone=(--cfg-options data.unlabeled.batch_size=0)
  stage "Data: aerial-like scenes with masks and boxes, initial weights" make_data
  stage "Plan: the speed of this machine" plan "$@"
  model=$(with_experts "$backbone") || s5_fail "cannot tell whether $backbone can have experts; see the message above"
  stage "Labeled images alone" pretrain supervised "$@" "${alone[@]}"
  stage "Curation: choose unlabeled images" curate "$backbone" "$device"
  stage "S4P: labeled and chosen images, from the model of the labeled ones" pretrain s4p "$@" "${from_labels[@]}" \
    --cfg-options "data.unlabeled.split=$S5_ROOT/$OUT/curated/splits/curated.txt"
  stage "For comparison: as many steps more on labeled images alone" \
    pretrain supervised_longer "$@" "${from_labels[@]}" "${alone[@]}"
  stage "Fine-tuning: one model for three label sets" fine_tune "$model" "$device" "$OUT/s4p/${name}_s4p_upernet"
  stage "Scores and overlays of the three tasks" apply "$model" "$device"
  stage "Oriented detection: one model for two sets of classes" detect "$model" "$device" "$OUT/s4p/${name}_s4p"
  stage "Scores and drawings of both detection tasks" find_objects "$model" "$device"
  stage "Report" report
  printf '\nAll stages: %d s. Results: %s/%s\n' $((SECONDS - start)) "$S5_ROOT" "$OUT"
}

main "$@"
