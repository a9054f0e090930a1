#!/usr/bin/env bash
# The Python environment that all scripts run in.
#
#   bash scripts/env.sh [dev]   install requirements.txt (dev: and requirements-dev.txt)
#   source scripts/env.sh       defines S5_ROOT, s5_python and s5_install for other scripts
#
# Uses the active virtual or conda environment, if any; otherwise .venv in the repository, created if
# missing. If the installation is up to date, nothing is done, which takes a second.

S5_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

s5_fail() {
  printf 'error: %s\n' "$@" >&2
  exit 1
}

# Prints the prefix of the active environment, or nothing. conda's shared base environment is not used.
s5_active_prefix() {
  if [[ -n ${VIRTUAL_ENV:-} && -x $VIRTUAL_ENV/bin/python ]]; then
    echo "$VIRTUAL_ENV"
  elif [[ -n ${CONDA_PREFIX:-} && ${CONDA_DEFAULT_ENV:-} != base && -x $CONDA_PREFIX/bin/python ]]; then
    echo "$CONDA_PREFIX"
  fi
}

# True if interpreter $1 runs and is a Python that S5 supports.
s5_supported() {
  "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

# Prints the interpreter for a new .venv.
s5_base_python() {
  local name
  for name in python3.12 python3.11 python3.10 python3.13 python3 python; do
    if command -v "$name" >/dev/null && s5_supported "$name"; then
      command -v "$name"
      return
    fi
  done
  s5_fail "no Python 3.10 to 3.13 found (tried python3.12, python3.11, python3.10, python3.13, python3, python)" \
    "install one, or activate a virtual or conda environment that has one"
}

s5_create_venv() {
  local base
  base=$(s5_base_python) || exit 1
  echo "Creating $S5_ROOT/.venv with $("$base" --version) ($base)"
  # Recreates an environment that is incomplete or was moved with the folder.
  "$base" -m venv --clear "$S5_ROOT/.venv" || s5_fail "$base could not create a virtual environment" \
    "on Debian and Ubuntu: apt-get install python3-venv; or activate your own environment"
}

# Everything that the installation depends on; the installation is up to date if this is unchanged.
s5_stamp() {
  local files=(requirements.txt pyproject.toml scripts/opencv_headless/pyproject.toml)
  [[ -z $1 ]] || files+=(requirements-dev.txt)
  echo "root $S5_ROOT"
  "$S5_PYTHON" -c 'import sys; print(sys.executable, sys.version)'
  (cd "$S5_ROOT" && cksum "${files[@]}")
}

s5_install_packages() {
  local arguments=(-r requirements.txt -e .)
  [[ -z $1 ]] || arguments=(-r requirements.txt -r requirements-dev.txt -e ".[dev]")
  echo "Installing into $S5_PREFIX (the first time this downloads a few GB)"
  # Python compiles what it imports; compiling all 20 000 files here would take a minute.
  (cd "$S5_ROOT" && "$S5_PYTHON" -m pip install --no-compile "${arguments[@]}") || s5_fail "the installation failed, see above"
  s5_repair_opencv
}

# Replacing a previously installed opencv-python deletes the cv2 folder that it shares with the headless wheel.
s5_repair_opencv() {
  "$S5_PYTHON" -c 'import cv2; cv2.imdecode' 2>/dev/null && return
  (cd "$S5_ROOT" && "$S5_PYTHON" -m pip install --no-deps --force-reinstall \
    "$(sed -n 's/^\(opencv-python-headless==[^ ]*\).*/\1/p' requirements.txt)") || s5_fail "could not install OpenCV"
}

# Sets S5_PYTHON to the interpreter of the active environment or of .venv, or to a python with torch; installs
# nothing. For launchers, which may run without network access.
s5_python() {
  local prefix name
  prefix=$(s5_active_prefix)
  [[ -n $prefix || ! -x $S5_ROOT/.venv/bin/python ]] || prefix=$S5_ROOT/.venv
  if [[ -n $prefix ]]; then
    S5_PYTHON=$prefix/bin/python
    return
  fi
  for name in python3 python; do
    if s5_supported "$name" && "$name" -c 'import torch' >/dev/null 2>&1; then
      S5_PYTHON=$(command -v "$name")
      return
    fi
  done
  s5_fail "no Python environment: activate yours, or create one with: bash \"$S5_ROOT/scripts/env.sh\""
}

# s5_install [dev]: prepares the environment, puts it on PATH and sets S5_PYTHON.
s5_install() {
  local kind=${1:-} lock
  S5_PREFIX=$(s5_active_prefix)
  lock=${S5_PREFIX:-$S5_ROOT}/.s5-install.lock
  # If two scripts start at once, the second waits here and then finds everything installed.
  if command -v flock >/dev/null && exec 9>"$lock"; then
    flock -n 9 || { echo "Waiting for another installation to finish ($lock)"; flock 9; }
  fi
  if [[ -z $S5_PREFIX ]]; then
    S5_PREFIX=$S5_ROOT/.venv
    "$S5_PREFIX/bin/python" -c 'import pip' 2>/dev/null || s5_create_venv
    export VIRTUAL_ENV=$S5_PREFIX PATH="$S5_PREFIX/bin:$PATH"
  fi
  S5_PYTHON=$S5_PREFIX/bin/python
  s5_supported "$S5_PYTHON" || s5_fail "the active environment $S5_PREFIX has $("$S5_PYTHON" --version 2>&1)" \
    "S5 needs Python 3.10 to 3.13: activate another environment, or none to create .venv"
  local stamp=$S5_PREFIX/.s5-installed${kind:+-$kind}
  if [[ $(s5_stamp "$kind") != "$(cat "$stamp" 2>/dev/null)" ]]; then
    rm -f "$S5_PREFIX"/.s5-installed*
    s5_install_packages "$kind"
    s5_stamp "" >"$S5_PREFIX/.s5-installed"
    [[ -z $kind ]] || s5_stamp "$kind" >"$stamp"
  fi
  exec 9>&- || true
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  set -euo pipefail
  [[ $# -eq 0 || ( $# -eq 1 && $1 == dev ) ]] || s5_fail "usage: bash env.sh [dev]"
  s5_install "${1:-}"
  echo "Ready: $("$S5_PYTHON" --version), $S5_PYTHON"
fi
