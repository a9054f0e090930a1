#!/usr/bin/env bash
# Installs the requirements and runs all checks: lint, formatting, types, tests.
#
#   bash scripts/test.sh [arguments of pytest]     for example:
#   bash scripts/test.sh -m "not slow"             without the slow tests
#   bash scripts/test.sh tests/ops/test_losses.py -k ignore -n 0
#
# The tests run in as many processes as there are cores and memory for; -n 0 runs them in one, as --pdb needs.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

MEMORY=4000000 # kB that the tests of one process, and what they start, take at most

# Prints how many processes have room in memory.
processes() {
  local available
  available=$(awk '/^MemAvailable:/ {print $2}' /proc/meminfo 2>/dev/null) || true
  echo $((${available:-0} > MEMORY ? available / MEMORY : 1))
}

main() {
  s5_install dev
  # More threads are no faster on tensors of this size.
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  cd "$S5_ROOT"
  echo "== ruff check"
  "$S5_PYTHON" -m ruff check .
  echo "== ruff format"
  "$S5_PYTHON" -m ruff format --check .
  echo "== mypy"
  "$S5_PYTHON" -m mypy
  echo "== pytest"
  "$S5_PYTHON" -m pytest -q -n auto --maxprocesses "$(processes)" --dist loadfile --no-loadscope-reorder "$@"
}

main "$@"
