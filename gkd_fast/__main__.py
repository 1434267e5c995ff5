"""``python -m gkd_fast``: the same as ``gkd-fast``."""

from gkd_fast.cli.main import main

if __name__ == "__main__":
    main()
