"""``python -m gkd_fast.export``: the command ``gkd-fast export``."""

from gkd_fast.cli.main import run

if __name__ == "__main__":
    run("export")
