#!/usr/bin/env bash
# Installs the requirements and runs all checks: lint, formatting, types, tests.
#
#   bash scripts/test.sh [arguments of pytest]     for example: bash scripts/test.sh tests/ops/test_losses.py -k ignore
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

main() {
  s5_install dev
  # Two threads are as fast as many on small tensors, and leave CPU time for processes that the tests start.
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
  cd "$S5_ROOT"
  echo "== ruff check"
  "$S5_PYTHON" -m ruff check .
  echo "== ruff format"
  "$S5_PYTHON" -m ruff format --check .
  echo "== mypy"
  "$S5_PYTHON" -m mypy s5
  echo "== pytest"
  "$S5_PYTHON" -m pytest -q "$@"
}

main "$@"
