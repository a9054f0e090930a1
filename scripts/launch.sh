#!/usr/bin/env bash
# Shared by the launchers of the three trees (source it): checks the arguments, selects the interpreter and starts one
# process directly or several with torchrun. Installs nothing.
#
#   GPUS=0     run on the CPU with CPU_PROCESSES processes (default 1)
#   NNODES, NODE_RANK, MASTER_ADDR     several machines: the same command on each, NODE_RANK counting from 0

source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

# Prints the problem and the usage text (set by the launcher as USAGE), and stops.
s5_usage() {
  [[ $# -eq 0 ]] || printf 'error: %s\n\n' "$*" >&2
  printf '%s\n' "$USAGE" >&2
  exit 2
}

# s5_whole NAME VALUE MIN MAX: stops unless VALUE is a whole number in the range.
s5_whole() {
  [[ $2 =~ ^[0-9]{1,6}$ ]] && ((10#$2 >= $3 && 10#$2 <= $4)) ||
    s5_usage "$1 must be a whole number from $3 to $4, got '$2'"
}

s5_check_nodes() {
  NNODES=${NNODES:-1}
  s5_whole NNODES "$NNODES" 1 10000
  if ((NNODES == 1)); then
    NODE_RANK=0 MASTER_ADDR=127.0.0.1
    return
  fi
  [[ -n ${NODE_RANK:-} && -n ${MASTER_ADDR:-} ]] ||
    s5_usage "NNODES=$NNODES also needs NODE_RANK (0 on the first machine) and MASTER_ADDR (the first machine)"
  s5_whole NODE_RANK "$NODE_RANK" 0 $((NNODES - 1))
}

# s5_launch GPUS PORT SCRIPT [ARGUMENT...]: replaces this shell with the run. SCRIPT also gets --device.
s5_launch() {
  local gpus=$1 port=$2 script=$3 processes device=cuda check
  shift 3
  s5_whole GPUS "$gpus" 0 1024
  s5_whole PORT "$port" 1 65535
  s5_check_nodes
  s5_python

  processes=$gpus
  if ((gpus == 0)); then
    device=cpu processes=${CPU_PROCESSES:-1}
    s5_whole CPU_PROCESSES "$processes" 1 1024
    export CUDA_VISIBLE_DEVICES=
  fi

  # Also for a single process, which does not use the port, so that the same command works with more GPUs.
  check=("$S5_PYTHON" "$S5_ROOT/scripts/launch_check.py" --gpus "$gpus")
  ((NODE_RANK > 0)) || check+=(--port "$port")
  "${check[@]}" || exit 1

  # Use this checkout, even if the environment has another one installed.
  export PYTHONPATH="$S5_ROOT${PYTHONPATH:+:$PYTHONPATH}"
  if ((processes * NNODES == 1)); then
    exec "$S5_PYTHON" "$script" --device "$device" "$@"
  fi
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(s5_threads "$device" "$processes")}
  # Seconds between SIGTERM or Ctrl-C and SIGKILL; torchrun's default of 30 is too short for large checkpoints.
  export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-120}
  exec "$S5_PYTHON" -m torch.distributed.run --nnodes "$NNODES" --node_rank "$NODE_RANK" \
    --nproc_per_node "$processes" --master_addr "$MASTER_ADDR" --master_port "$port" \
    "$script" --device "$device" "$@"
}

# Threads per process: on a CPU the processes share the cores; with a GPU one thread is enough.
s5_threads() {
  local cores
  cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
  [[ $1 == cpu ]] && echo $((cores > $2 ? cores / $2 : 1)) || echo 1
}
