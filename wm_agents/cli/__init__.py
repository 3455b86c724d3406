"""The command line: `wm`, a table of commands and one file for each group of them."""

from wm_agents.cli.app import main

__all__ = ["main"]
