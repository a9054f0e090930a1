#!/usr/bin/env bash
# From nothing to a trained model: makes the environment, then runs the stages below on generated images. Results
# go to work_dirs/quickstart/. Further runs train again from the start and keep the generated images.
#
#   bash scripts/quickstart.sh [options of train.py]     for example: bash scripts/quickstart.sh --device cpu
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

OUT=work_dirs/quickstart # relative to the repository, where main goes

# Keeps the scenes of an earlier run, and replaces them where this version draws others.
make_data() {
  "$S5_PYTHON" -m s5.data.scenes --out "$OUT/data" --overwrite
}

# pretrain NAME [options]: one S4P run from random weights into $OUT/NAME.
pretrain() {
  local name=$1
  shift
  rm -rf "${OUT:?}/$name"
  "$S5_PYTHON" S4_Pretrain/train.py --config configs/quickstart.yaml --work-dir "$OUT/$name" \
    --backbone vit_t --init none "$@"
}

report() {
  "$S5_PYTHON" scripts/quickstart_report.py "$OUT"
}

# stage TITLE COMMAND...: runs one stage under a heading and says how long it took.
stage() {
  local title=$1 start=$SECONDS
  shift
  printf '\n== %s\n' "$title"
  "$@" || s5_fail "'$title' failed after $((SECONDS - start)) s; the lines above say why"
  printf '== done in %d s\n' $((SECONDS - start))
}

main() {
  stage "Environment" s5_install
  cd "$S5_ROOT"
  local start=$SECONDS
  stage "Data: aerial-like scenes with masks and boxes" make_data
  stage "S4P: labeled and unlabeled images" pretrain s4p "$@"
  stage "Supervised only, the same number of steps" pretrain supervised "$@" --cfg-options data.unlabeled.batch_size=0
  stage "Report" report
  printf '\nAll stages: %d s. Results: %s/%s\n' $((SECONDS - start)) "$S5_ROOT" "$OUT"
}

main "$@"
