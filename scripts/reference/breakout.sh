#!/usr/bin/env bash
# The run that made Dream-Breakout-v0, all by its recipe in wm_agents/loops/recipes.py; run it again to resume.
# Leaves runs/breakout/{run.json,state.json,summary.json,model/,fidelity/,round-*/,data/} and puts model/, with the starts that fit
# in 4 MB, into wm_agents/store/.
set -euo pipefail
cd "$(dirname "$0")/../.."
make setup
OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" .venv/bin/wm improve --task Breakout
.venv/bin/python scripts/ship.py runs/breakout/model vmc-breakout-small
