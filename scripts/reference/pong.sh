#!/usr/bin/env bash
# The run that made Dream-Pong-v0, by its recipe in wm_agents/loops/recipes.py, five rounds of it; run it again to resume.
# Leaves runs/pong/{run.json,state.json,summary.json,model/,fidelity/,round-*/,data/} and puts model/, with the starts that fit
# in 4 MB, into wm_agents/store/.
set -euo pipefail
cd "$(dirname "$0")/../.."
make setup
OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" .venv/bin/wm improve --task Pong --rounds 5
.venv/bin/python scripts/ship.py runs/pong/model vmc-pong-small
