"""``python -m gkd_fast.push_to_hub``: the command ``gkd-fast push-to-hub``."""

from gkd_fast.cli.main import run

if __name__ == "__main__":
    run("push-to-hub")
