#!/usr/bin/env bash
# Offline RL on three manipulation tasks, algorithms side by side: scripts/rl_poses.sh [out] [seeds...]
# For each seed: 45 demonstrations a task -> a clone of them -> 45 attempts a task of the clone -> every algorithm on both;
# then 45 attempts of RECAP's policy -> RECAP and, as a control, filtered imitation on all three.
# ALGORITHMS="bc iql" does some of them. Goes on where it stopped; prints the table at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:-outputs/rl/poses}"; shift || true
seeds=("${@:-0}")
python=.venv/bin/python
read -ra algorithms <<<"${ALGORITHMS:-bc filtered_bc advantage_conditioned iql co_rft q_chunking}"

improve() { # label, algorithm, data folders, overrides...
  local run="$out/$1_$seed" algorithm="$2" data="$3"; shift 3
  [ -f "$run/results.json" ] || $python -m scripts.improve experiment="rl_poses_$algorithm" seed="$seed" \
    gather.seed="$seed" "data=[$data]" out="$run" "$@"
}

again() { # label of the run whose policy makes the next attempts
  attempts=(gather.demonstrations.episodes=0 gather.attempts.episodes=135 gather.attempts.player="$out/$1_$seed")
}

for seed in "${seeds[@]}"; do
  demos="$out/data_$seed"
  improve clone bc "$demos"
  again clone
  data="$out/data_${seed}_clone,$demos"
  for algorithm in "${algorithms[@]}"; do
    improve "$algorithm" "$algorithm" "$data" "${attempts[@]}"
  done
  if [ -f "$out/advantage_conditioned_$seed/results.json" ]; then # a second round
    again advantage_conditioned
    data="$out/data_${seed}_advantage_conditioned,$data"
    improve advantage_conditioned_again advantage_conditioned "$data" "${attempts[@]}"
    improve filtered_bc_again filtered_bc "$data" "${attempts[@]}"
  fi
done
$python -m scripts.improve_table root="$out" baseline=clone
