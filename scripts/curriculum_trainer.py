"""Trains a curriculum of tasks in dreams; the same as `wm curriculum`.

    python scripts/curriculum_trainer.py --quick --device cpu --record-video

`--help` lists the flags. Exit codes: 0 all tasks solved, 1 not all, 2 interrupted, 3 an error.
"""

from __future__ import annotations

import sys

from wm_agents.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["curriculum", *sys.argv[1:]]))
