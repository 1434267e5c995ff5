"""``python -m gkd_fast.study``: the command ``gkd-fast study``."""

from gkd_fast.cli.main import run

if __name__ == "__main__":
    run("study")
