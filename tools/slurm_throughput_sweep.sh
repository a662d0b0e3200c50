#!/usr/bin/env bash
# Submits benchmarks/bench_throughput.py for layouts and numbers of nodes, a Slurm job each.
#
#   tools/slurm_throughput_sweep.sh [OPTION ...] RECIPE [section.key=value ...]
#
#   --nodes "1 2 4 8"          numbers of nodes ("1")
#   --layouts "dp tp4-sp pp2"  model parallelism ("dp"): parts of tpN, sp, ppN, vpN, cpN, overlap,
#                              selective, full (recompute), offload, joined by -; dp: none
#   --packs-per-node N         packs a step grow with the nodes (weak scaling); else the recipe's
#   --steps N --warmup N       of bench_throughput (20, 5)
#   --real                     the recipe's data; else synthetic packs
#   --output FOLDER            for RECIPE_LAYOUT_nNODES.json (benchmarks/results/throughput)
#   --sbatch "OPTION ..."      more options of sbatch, such as "--partition gpu --account x"
#   --dry-run                  prints what would be submitted
#
# Runs of one layout wait for the one on the fewest nodes, whose JSON is their baseline. Afterwards:
#   python tools/throughput_table.py FOLDER/*.json --markdown table.md --plot scaling.png
set -euo pipefail

usage() {
  sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
  exit 2
}

overrides_of() { # a layout -> its overrides, one a line
  local part
  local -a parts
  IFS=- read -r -a parts <<<"$1"
  for part in "${parts[@]}"; do
    case $part in
      dp) ;;
      tp[1-9]*) echo "parallel.tensor_model_parallel_size=${part#tp}" ;;
      pp[1-9]*) echo "parallel.pipeline_model_parallel_size=${part#pp}" ;;
      vp[1-9]*) echo "parallel.virtual_pipeline_model_parallel_size=${part#vp}" ;;
      cp[1-9]*)
        echo "parallel.context_parallel_size=${part#cp}"
        echo "data.alignment=$((2 * ${part#cp}))"
        ;;
      sp) echo "parallel.sequence_parallel=true" ;;
      overlap)
        echo "parallel.overlap_grad_reduce=true"
        echo "parallel.overlap_param_gather=true"
        ;;
      selective | full) echo "parallel.recompute=$part" ;;
      offload) echo "parallel.optimizer_cpu_offload=true" ;;
      *)
        echo "slurm_throughput_sweep: layout $1: unknown part '$part'" >&2
        return 1
        ;;
    esac
  done
}

nodes="1" layouts="dp" packs_per_node="" steps=20 warmup=5 output=benchmarks/results/throughput
synthetic=(--synthetic) sbatch_options=() dry_run=0
while [[ $# -gt 0 ]]; do
  case $1 in
    --nodes) nodes=${2:-}; shift 2 || usage ;;
    --layouts) layouts=${2:-}; shift 2 || usage ;;
    --packs-per-node) packs_per_node=${2:-}; shift 2 || usage ;;
    --steps) steps=${2:-}; shift 2 || usage ;;
    --warmup) warmup=${2:-}; shift 2 || usage ;;
    --real) synthetic=(); shift ;;
    --output) output=${2:-}; shift 2 || usage ;;
    --sbatch) read -r -a sbatch_options <<<"${2:-}"; shift 2 || usage ;;
    --dry-run) dry_run=1; shift ;;
    -*) usage ;;
    *) break ;;
  esac
done
[[ $# -gt 0 ]] || usage
recipe=$1
shift
read -r -a node_counts <<<"$(tr ' ' '\n' <<<"$nodes" | sort -n | xargs)"
read -r -a layout_names <<<"$layouts"

for layout in "${layout_names[@]}"; do # all are known before the first job is submitted
  overrides_of "$layout" >/dev/null
done
[[ $dry_run -eq 1 ]] || mkdir -p "$output"
for layout in "${layout_names[@]}"; do
  mapfile -t layout_overrides < <(overrides_of "$layout")
  first_job="" first_json=""
  for count in "${node_counts[@]}"; do
    name=$(basename "$recipe" .yaml)_${layout}_n$count
    json=$output/$name.json
    overrides=("${layout_overrides[@]}" "$@")
    [[ -z $packs_per_node ]] ||
      overrides+=("training.global_batch_size=$((packs_per_node * count))")
    command=(sbatch --parsable --nodes "$count" --job-name "$name")
    [[ -z $first_job ]] || command+=(--dependency "afterok:$first_job" --kill-on-invalid-dep yes)
    command+=("${sbatch_options[@]}" tools/slurm_train.sbatch "$recipe" "${overrides[@]}")
    command+=("${synthetic[@]}" --steps "$steps" --warmup "$warmup")
    [[ -z $first_json ]] || command+=(--baseline "$first_json")
    command+=(--output "$json")
    if [[ $dry_run -eq 1 ]]; then
      echo "DSM_PROGRAM=benchmarks/bench_throughput.py$(printf ' %q' "${command[@]}")"
      job=JOB_$name
    else
      job=$(DSM_PROGRAM=benchmarks/bench_throughput.py "${command[@]}")
      job=${job%%;*} # sbatch --parsable prints JOB or JOB;CLUSTER
      echo "$job $json"
    fi
    first_job=${first_job:-$job}
    first_json=${first_json:-$json}
  done
done
