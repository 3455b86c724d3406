"""`python -m wm_agents` is `wm`."""

import sys

from wm_agents.cli import main

sys.exit(main())
