"""``python -m gkd_fast.train``: the command ``gkd-fast train``; as a module, the function of its name."""

import sys
from types import ModuleType
from typing import Any

from gkd_fast.cli.main import run


class _Train(ModuleType):
    def __call__(self, **options: Any) -> dict[str, Any] | None:
        """See `gkd_fast.runs.train.train`."""
        from gkd_fast.runs.train import train

        return train(**options)


sys.modules[__name__].__class__ = _Train

if __name__ == "__main__":
    run("train")
