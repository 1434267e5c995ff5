"""Where `gkd_fast.kernels` comes from: a checkout's folder beside the package, or an install's folder inside of it."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PRINT = """
import importlib.util
import gkd_fast.kernels
print(gkd_fast.kernels.__file__, importlib.util.find_spec("gkd_fast.kernels.launchers").origin)
"""
LAUNCH = """
import gkd_fast.kernels.launchers
print(gkd_fast.kernels.__file__, gkd_fast.kernels.launchers.__file__)
"""


def plain_python(root, *program):
    """What a program prints, word by word, in a folder that is nobody's install; or the last line of its error."""
    # Without `site` no .pth file is read, so no editable install adds its finder; the libraries are on the path alone.
    libraries = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    start = f"import sys; assert 'ditable' not in str(sys.meta_path); sys.path += {libraries!r}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-S", "-c", "\n".join((start, *program))]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    return result.stdout.split() if result.returncode == 0 else result.stderr.splitlines()[-1]


def found_in(folder):
    return [str(folder / "__init__.py"), str(folder / "launchers.py")]


@pytest.fixture
def checkout(tmp_path):
    """The package and the kernels beside it."""
    for name in ("gkd_fast", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return tmp_path


def test_a_checkout_that_is_not_installed_finds_its_kernels(checkout):
    assert plain_python(checkout, LAUNCH) == found_in(checkout / "kernels")


def test_an_editable_install_of_another_checkout_does_not_stand_in_its_way(checkout, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "kernels"
    shutil.copytree(ROOT / "kernels", other, ignore=shutil.ignore_patterns("__pycache__"))
    finder = f"""
import importlib.util, sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "gkd_fast.kernels":
            folder = {str(other)!r}
            start = folder + "/__init__.py"
            return importlib.util.spec_from_file_location(name, start, submodule_search_locations=[folder])
sys.meta_path.append(Finder)
"""
    assert plain_python(checkout, finder, PRINT) == found_in(checkout / "kernels")
    shutil.rmtree(checkout / "kernels")
    assert plain_python(checkout, finder, PRINT) == found_in(other)


def test_an_installed_package_uses_the_kernels_inside_of_it(checkout):
    shutil.copytree(checkout / "kernels", checkout / "gkd_fast" / "kernels")
    assert plain_python(checkout, PRINT) == found_in(checkout / "gkd_fast" / "kernels")


def test_another_projects_kernels_are_left_alone(checkout):
    (checkout / "kernels" / "launchers.py").unlink()
    assert plain_python(checkout, PRINT) == "ModuleNotFoundError: No module named 'gkd_fast.kernels'"


def test_the_tests_run_on_the_kernels_beside_them():
    import gkd_fast.kernels

    assert Path(gkd_fast.kernels.__file__).is_relative_to(ROOT)
