#!/usr/bin/env bash
# The stages of the shipped Dream-LunarLander-v0 with the settings of each, on one core of two; run it again to resume.
# Rounds 0 to 3 trained the controller for 100 iterations, later ones for 250 at a lower rate; rounds 0 to 7 were judged on 8
# episodes, later ones on 24 (docs/log.md says why). The code moved beside the run (the latent of shaken controllers, holds of
# random actions), so bits will differ.
# Leaves runs/lunarlander/{run.json,state.json,summary.json,model/,fidelity/,round-*/,data/}; model/ is what ships.
set -euo pipefail
cd "$(dirname "$0")/../.."
make setup
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

rounds_done() { python3 -c 'import json; print(json.load(open("runs/lunarlander/state.json"))["round"])' 2>/dev/null || echo 0; }
upto() { # rounds, flags...
  [ "$(rounds_done)" -ge "$1" ] || .venv/bin/wm improve --task LunarLander --final_episodes 1 --rounds "$@"
}

upto 4 --judge_episodes 8 --ppo.iterations 100 --ppo.lr 5e-4 --ppo.ent_coef 0.01
upto 8 --judge_episodes 8
.venv/bin/wm improve --task LunarLander
