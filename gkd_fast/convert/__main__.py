"""``python -m gkd_fast.convert``: the command ``gkd-fast convert``."""

from gkd_fast.cli.main import run

if __name__ == "__main__":
    run("convert")
