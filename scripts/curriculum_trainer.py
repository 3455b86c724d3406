"""Take a curriculum of tasks from nothing to promoted, in dreams: `wm curriculum` under the name it is known by.

    python scripts/curriculum_trainer.py --quick True --device cpu --record-video True

`--help` lists the flags. Exit: 0 all tasks solved, 1 not all, 2 interrupted, 3 an error.
"""

from __future__ import annotations

import sys

from wm_agents.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["curriculum", *sys.argv[1:]]))
