"""Many runs compared: methods and seeds, with a control. ``gkd_fast.study(...)`` runs a study."""

import sys
from types import ModuleType
from typing import Any


class _Study(ModuleType):
    """This package, and the function of its name: importing the one puts it where the other is looked for."""

    def __call__(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """See `gkd_fast.study.study.study`."""
        from gkd_fast.study.study import study

        return study(*arguments, **options)


sys.modules[__name__].__class__ = _Study
