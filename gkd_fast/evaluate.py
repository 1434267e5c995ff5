"""``python -m gkd_fast.evaluate``: the command ``gkd-fast evaluate``."""

from gkd_fast.cli.main import run

if __name__ == "__main__":
    run("evaluate")
