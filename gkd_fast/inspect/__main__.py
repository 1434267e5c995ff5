"""``python -m gkd_fast.inspect``: the command ``gkd-fast inspect``."""

from gkd_fast.cli.main import run

if __name__ == "__main__":
    run("inspect")
