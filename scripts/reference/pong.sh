#!/usr/bin/env bash
# The run that made Dream-Pong-v0 by V-M-C: five rounds of PONG_IN_PICTURES in wm_agents/loops/recipes.py; run it again to resume.
# `wm improve --task Pong` trains an object model instead.
# Leaves runs/pong/{run.json,state.json,summary.json,model/,fidelity/,round-*/,data/} and puts model/, with the starts that fit
# in 4 MB, into wm_agents/store/.
set -euo pipefail
cd "$(dirname "$0")/../.."
make setup
OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" .venv/bin/python -c '
from dataclasses import replace
from wm_agents.loops.recipes import PONG_IN_PICTURES
from wm_agents.loops.rounds import improve
improve(replace(PONG_IN_PICTURES, rounds=5))'
.venv/bin/python scripts/ship.py runs/pong/model vmc-pong-small
