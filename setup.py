"""Metadata lives in pyproject.toml; here is only what is built: the C++ operators.

Their sources go into the package too: a library that is missing, or was built for another processor, is
compiled at first use.
"""

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def sources(pattern: str) -> list[str]:
    """C++ files relative to this folder, as setuptools wants them; listing them puts them into the sdist."""
    return [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "csrc").rglob(pattern))]


def load_build_module() -> ModuleType:
    """gkd_fast/ops/_build.py by itself: the package around it needs torch."""
    spec = importlib.util.spec_from_file_location("_build", ROOT / "gkd_fast" / "ops" / "_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildOperators(build_ext):
    """Compile ahead of time with the torch that is installed; without one, or when it fails, at first use."""

    def get_ext_filename(self, fullname: str) -> str:
        *packages, name = fullname.split(".")
        return os.path.join(*packages, f"{name}.{load_build_module().fingerprint()}.so")

    def build_extension(self, ext: Extension) -> None:
        # pip's isolated build hides the environment it installs into; torch is too large to be fetched twice.
        sys.path += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        try:
            build = load_build_module()
            library = build.built_library() or build.compile_library(Path(self.build_temp).resolve() / "operators")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(library, target)
        except Exception as error:  # an install never fails for want of a compiler
            print(
                f"gkd_fast: CPU operators not built now, they will be at first use: {error!r}",
                file=sys.stderr,
            )


class BuildWithSources(build_py):
    """Put csrc/ inside the package; an editable install finds it beside the package."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "gkd_fast" / "csrc"
            shutil.copytree(ROOT / "csrc", target, dirs_exist_ok=True)


setup(
    packages=[*find_packages(include=["gkd_fast*"]), "gkd_fast.kernels"],
    package_dir={"gkd_fast.kernels": "kernels"},
    ext_modules=[
        Extension("gkd_fast._C", sources=sources("*.cpp"), depends=[*sources("*.h"), *sources("*.cu*")], optional=True)
    ],
    cmdclass={"build_ext": BuildOperators, "build_py": BuildWithSources},
)
