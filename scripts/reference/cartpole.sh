#!/usr/bin/env bash
# The run that made Dream-CartPole-v0, all by its recipe in wm_agents/loops/recipes.py; run it again to resume.
# Leaves runs/cartpole/{run.json,state.json,summary.json,model/,fidelity/,round-*/,data/}; model/ is what ships in wm_agents/store/.
set -euo pipefail
cd "$(dirname "$0")/../.."
make setup
OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" .venv/bin/wm improve --task CartPole
