"""``python -m gkd_fast.study``."""

from gkd_fast.cli.command import run_command
from gkd_fast.cli.study import main

if __name__ == "__main__":
    run_command(main)
