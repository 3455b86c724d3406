#!/usr/bin/env bash
# The stages of the shipped Dream-CarRacing-v0 with the settings of each, on two CPU cores; run it again to resume.
# Reconstructed after the fact and not yet run from nothing. The code moved too (window sampling and reward scale after round 2,
# starts from round 9 on), so the result will differ.
# Leaves runs/carracing/{run.json,state.json,summary.json,model/,round-*/,data/}; model/ is what ships in wm_agents/store/.
# The settings changed along the way, for the reasons in docs/log.md; a new run is better off with the recipe alone:
#   wm improve --task CarRacing --out runs/mine
set -euo pipefail
cd "$(dirname "$0")/../.."
make setup
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"

rounds_done() { python3 -c 'import json; print(json.load(open("runs/carracing/state.json"))["round"])' 2>/dev/null || echo 0; }
upto() { # rounds, flags...
  [ "$(rounds_done)" -ge "$1" ] || .venv/bin/wm improve --task CarRacing --out runs/carracing --rounds "$@"
}

early="--stall 40 --window 64 --memory.total_steps 3000 --memory.batch_size 64 --horizon 150 --dream_stall null --start_rounds 99"
short="--cma.rollouts 16 --cma.generations 100"
upto 3 $early $short --model.rew_weight 2
upto 7 $early $short
upto 8 $early --cma.generations 300
upto 9 --memory.total_steps 3000 --horizon 150 --dream_stall 10 --start_rounds 99 --cma.generations 120
upto 10 --cma.generations 110
.venv/bin/wm improve --task CarRacing --out runs/carracing --rounds 12
