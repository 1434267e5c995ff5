"""``python -m gkd_fast.predict``: the command ``gkd-fast predict``."""

from gkd_fast.cli.main import run

if __name__ == "__main__":
    run("predict")
