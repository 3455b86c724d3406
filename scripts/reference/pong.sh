#!/usr/bin/env bash
# The stages of the shipped Dream-Pong-v0 with the settings of each; run it again to resume. V of round 0 was fitted on a GPU, the rest
# on CPU cores, and docs/log.md says what was tried between the rounds. The code moved beside the run, so bits will differ.
# A better run begins with `wm improve --task Pong` alone.
# Leaves runs/pong/{run.json,state.json,summary.json,model/,fidelity/,round-*/,data/}.
set -euo pipefail
cd "$(dirname "$0")/../.."
make setup
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

then_=(--random_steps 100000 --round_steps 35000 --shard_episodes 8 --max_steps null --model.hidden 256 --memory.total_steps 3000
  --vision_rounds 1 --ppo.steps 128 --ppo.batch_size 2048 --horizon 200 --judge_episodes 4)
rounds_done() { python3 -c 'import json; print(json.load(open("runs/pong/state.json"))["round"])' 2>/dev/null || echo 0; }
upto() { # rounds, flags...
  [ "$(rounds_done)" -ge "$1" ] || .venv/bin/wm improve --task Pong --final_episodes 1 "${then_[@]}" --rounds "$@"
}

upto 1 --ppo.net '[128,128]' --ppo.activation tanh --ppo.whiten false --temperature 1.0 --ppo.iterations 100
upto 4 --ppo.net '[128,128]' --ppo.activation tanh --ppo.whiten false --temperature 1.0
.venv/bin/wm improve --task Pong "${then_[@]}" --rounds 5 --temperature 0.3
.venv/bin/python scripts/ship.py runs/pong/model vmc-pong-small
