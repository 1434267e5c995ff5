"""``python -m gkd_fast.report``: the command ``gkd-fast report``."""

from gkd_fast.cli.main import run

if __name__ == "__main__":
    run("report")
