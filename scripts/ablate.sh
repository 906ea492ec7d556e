#!/usr/bin/env bash
# What made the difference? One thing changed at a time on one tabletop task: scripts/ablate.sh [out] [seeds...]
# Every arm is played on the same held-out placements. Goes on where it stopped; prints one line per run.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:-outputs/ablation}"; shift || true
seeds=("${@:-0}")
python=.venv/bin/python
task="tasks=[goal_place]"

collect() { # name, overrides...
  local data="$out/s$seed/$1-data"; shift
  [ -d "$data" ] || $python -m scripts.collect env=tabletop "$task" episodes=60 workers=1 seed="$seed" out="$data" "$@"
}
arm() { # name, dataset, overrides of training...
  local name="$1" data="$out/s$seed/$2-data" run="$out/s$seed/$1"; shift 2
  [ -f "$run/model.safetensors" ] || $python -m scripts.train dataset="$data" out="$run" seed="$seed" steps="${STEPS:-400}" "$@"
  [ -f "$run-eval/results.json" ] || $python -m scripts.evaluate env=tabletop "$task" policy="$run" episodes=20 \
    execute=4 videos=0 workers=1 batch=4 seed="$seed" out="$run-eval"
  $python -c "import json; t = json.load(open('$run-eval/results.json'))['total']; \
    print('ABLATION', '$name', 'seed', $seed, t['successes'], 'of', t['episodes'])"
}

for seed in "${seeds[@]}"; do
  collect full
  collect clean "perturbation.sigmas=[0]" perturbation.preroll=0 perturbation.kick_chance=0
  collect narrow env.train_states=5 env.extra_states=0
  arm as_it_is full
  arm clean_demonstrations clean            # expert: no noise, so no recoveries
  arm five_placements narrow                # coverage of places
  arm gripper_l1 full policy.gripper_loss=l1
  arm even_sampling full gripper_oversampling=1
done
