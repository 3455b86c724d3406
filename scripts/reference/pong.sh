#!/usr/bin/env bash
# The run that made Dream-Pong-v0, by its recipe in wm_agents/loops/recipes.py; run it again to resume.
# The shipped run was resumed, and had two validation games after round 40 and four of the last controller after round 70, which
# selected nothing. Then the mean of the last five controllers was evaluated and saved.
# Leaves runs/pong/{run.json,state.json,summary.json,model/,fidelity/,round-*/,data/}; model/ is what ships in wm_agents/store/.
set -euo pipefail
cd "$(dirname "$0")/../.."
make setup
OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" .venv/bin/wm improve --task Pong
.venv/bin/python scripts/ship.py runs/pong/model objects-pong
