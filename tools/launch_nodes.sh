#!/usr/bin/env bash
# A job on machines without a scheduler.
#
#   tools/launch_nodes.sh --hosts host0,host1 [OPTION ...] PROGRAM [ARGUMENT ...]
#     starts it on all hosts through ssh and shows their output, each line with its host; the
#     checkout, its data and its run folders lie at the same path everywhere
#   tools/launch_nodes.sh --nodes 2 --head host0 [OPTION ...] PROGRAM [ARGUMENT ...]
#     prints the command to run on each of the nodes
#
# PROGRAM: as for tools/run_node.sh, such as `-m dsm_engine.cli train RECIPE --resume`. Options:
#   --gpus N      processes a node (gpu: one for each GPU)
#   --port P      where the nodes meet on the first host (29500)
#   --restarts N  how often processes are started again (3)
#   --id NAME     of the job (dsm)
#   --dry-run     prints the ssh commands and starts nothing
# Ctrl-C asks the run to save and to end (SIGTERM to tools/run_node.sh on every host).
set -euo pipefail

usage() {
  sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
  exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
hosts=() nodes="" head_host="" gpus=gpu port=29500 restarts=3 id=dsm dry_run=0
while [[ $# -gt 0 ]]; do
  case $1 in
    --hosts) IFS=, read -r -a hosts <<<"${2:-}"; shift 2 || usage ;;
    --nodes) nodes=${2:-}; shift 2 || usage ;;
    --head) head_host=${2:-}; shift 2 || usage ;;
    --gpus) gpus=${2:-}; shift 2 || usage ;;
    --port) port=${2:-}; shift 2 || usage ;;
    --restarts) restarts=${2:-}; shift 2 || usage ;;
    --id) id=${2:-}; shift 2 || usage ;;
    --dry-run) dry_run=1; shift ;;
    --help) usage ;;
    -m | [^-]*) break ;;
    *) echo "launch_nodes: unknown option $1" >&2; usage ;;
  esac
done
[[ $# -gt 0 ]] || usage
if [[ ${#hosts[@]} -gt 0 ]]; then
  [[ -z $nodes$head_host ]] || usage
  nodes=${#hosts[@]}
  head_host=${hosts[0]}
fi
[[ $nodes =~ ^[1-9][0-9]*$ && -n $head_host ]] || usage

variables="DSM_NNODES=$nodes DSM_RDZV=$head_host:$port DSM_RDZV_ID=$id"
variables+=" DSM_GPUS_PER_NODE=$gpus DSM_MAX_RESTARTS=$restarts"
program="tools/run_node.sh$(printf ' %q' "$@")"
folder=$(printf %q "$root")

if [[ ${#hosts[@]} -eq 0 ]]; then
  echo "# on each of the $nodes nodes:"
  echo "cd $folder && $variables $program"
  exit
fi
pid_file=$(printf %q "/tmp/dsm_$id.pid")
command="cd $folder && echo \$\$ >$pid_file && exec env $variables $program"
if [[ $dry_run -eq 1 ]]; then
  for host in "${hosts[@]}"; do
    printf 'ssh -o BatchMode=yes %q %q\n' "$host" "$command"
  done
  exit
fi

declare -A ssh_of
for host in "${hosts[@]}"; do # in sessions of their own, so that Ctrl-C does not cut the connection
  setsid ssh -o BatchMode=yes "$host" "$command" </dev/null > >(sed -u "s/^/[$host] /") 2>&1 &
  ssh_of[$host]=$!
done

interrupted=0
end() {
  interrupted=1
  for host in "${hosts[@]}"; do
    ssh -o BatchMode=yes "$host" "kill -TERM \$(cat $pid_file)" </dev/null || true
  done
}
trap end INT TERM

status=0
for host in "${hosts[@]}"; do
  code=0
  while true; do
    interrupted=0
    found=0
    wait "${ssh_of[$host]}" || found=$?
    [[ $found -ne 127 ]] || break # its end was reported before
    code=$found
    [[ $interrupted -eq 1 ]] || break
  done
  if [[ $code -ne 0 ]]; then
    echo "launch_nodes: $host ended with exit code $code" >&2
    status=$code
  fi
done
exit "$status"
