#!/usr/bin/env bash
# The shipped Dream-CarRacing-v0, from nothing: about 6 hours at most on two CPU cores; run it again to resume.
# Leaves runs/carracing/{summary.json,model/,round-*/,data/}; the model directory is what ships in wm_agents/store/.
set -euo pipefail
cd "$(dirname "$0")/../.."
make setup
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
.venv/bin/wm improve --task CarRacing --out runs/carracing "$@"
