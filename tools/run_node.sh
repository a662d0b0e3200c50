#!/usr/bin/env bash
# One node's share of a job: torchrun with a rendezvous, restarts, and signals passed on.
#
#   DSM_NNODES=4 DSM_RDZV=host0:29500 tools/run_node.sh PROGRAM [ARGUMENT ...]
#
# The same command on every node. PROGRAM is what torchrun starts: a file, or `-m MODULE`. Variables:
#   DSM_NNODES         nodes of the job (1)
#   DSM_RDZV           HOST:PORT where the nodes meet; HOST is one of them (localhost:29500)
#   DSM_RDZV_ID        name of the job, the same on all nodes (dsm)
#   DSM_GPUS_PER_NODE  processes on this node (gpu: one for each GPU)
#   DSM_MAX_RESTARTS   how often the processes are started again after one has died (3)
#   DSM_PYTHON         the interpreter (.venv/bin/python of this checkout, else python3)
#
# SIGUSR1 and the first SIGTERM, SIGINT or SIGHUP go to the processes themselves: `dsm train`
# finishes its step, saves and ends. torchrun's own way would kill them after 30 seconds. The next
# SIGTERM, SIGINT or SIGHUP ends torchrun, and so does its starting others in their place.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${DSM_PYTHON:-$root/.venv/bin/python}
[[ -x $python ]] || python=python3
[[ $# -gt 0 ]] || {
  echo "usage: tools/run_node.sh PROGRAM [ARGUMENT ...]" >&2
  exit 2
}

# Restarted processes of several nodes would find addresses of dead ones in a store that the agents
# share with them (torch 2.13): "Gloo connectFullMesh failed", or a hang. So they make their own.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

"$python" -m torch.distributed.run \
  --nnodes "${DSM_NNODES:-1}" \
  --nproc-per-node "${DSM_GPUS_PER_NODE:-gpu}" \
  --rdzv-backend c10d \
  --rdzv-endpoint "${DSM_RDZV:-localhost:29500}" \
  --rdzv-id "${DSM_RDZV_ID:-dsm}" \
  --max-restarts "${DSM_MAX_RESTARTS:-3}" \
  "$@" &
torchrun=$!

interrupted=0
asked=0
asked_processes=""
pass_on() {
  interrupted=1
  pkill "-$1" -P "$torchrun" || true
}
end() {
  if [[ $asked -eq 0 ]]; then
    asked=1
    asked_processes=" $(pgrep -P "$torchrun" | xargs) "
    pass_on TERM
  else
    interrupted=1
    kill -TERM "$torchrun" 2>/dev/null || true
  fi
}
start_no_others() {
  local process
  while kill -0 "$torchrun" 2>/dev/null; do
    for process in $(pgrep -P "$torchrun"); do
      [[ $asked_processes == *" $process "* ]] || kill -TERM "$torchrun" 2>/dev/null || true
    done
    sleep 0.5
  done
}
trap 'pass_on USR1' USR1
trap end TERM INT HUP

# `wait` also returns when a signal was handled; 127 means that torchrun's end was reported before.
status=0
while true; do
  [[ $asked -eq 0 ]] || start_no_others
  interrupted=0
  code=0
  wait "$torchrun" || code=$?
  [[ $code -ne 127 ]] || break
  status=$code
  [[ $interrupted -eq 1 ]] || break
done
exit "$status"
