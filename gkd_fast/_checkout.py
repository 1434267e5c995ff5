"""A checkout that nobody has installed finds its own kernels.

They lie in kernels/ beside the package. An install puts them inside of it, as `gkd_fast.kernels`: nothing to do then.
"""

import importlib.util
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def add_kernels() -> None:
    """Makes kernels/ the module `gkd_fast.kernels`, whatever other checkout an editable install points to."""
    folder = PACKAGE.parent / "kernels"
    # Another project's top-level package may have this name, too.
    if (PACKAGE / "kernels").is_dir() or not (folder / "launchers.py").is_file():
        return
    package, name = sys.modules[__package__], f"{__package__}.kernels"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    kernels = sys.modules[name] = importlib.util.module_from_spec(spec)
    setattr(package, "kernels", kernels)  # noqa: B010 - type checkers know no such attribute
    spec.loader.exec_module(kernels)
