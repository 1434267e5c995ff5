"""Operator tests with C++ kernels that check every memory access and every undefined operation.

    python tests/ops/sanitize.py [arguments of pytest]

builds csrc/ with AddressSanitizer and UndefinedBehaviorSanitizer into a cached library of its own and runs the
operator tests with it. Any report, in whatever process, ends the command with status 1.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

COMPILER = os.environ.get("CXX", "g++")
TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parents[1]
FLAGS = (
    "-O1",
    "-g",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined,float-cast-overflow",
    "-fno-sanitize-recover=all",
    "-D_GLIBCXX_ASSERTIONS",
)
# torch.compile runs compilers and loads what they make, neither of which knows the sanitizers; this test's own file
# would call itself.
LEFT_OUT = ("test_compile.py", "test_sanitizers.py")
BUILD = """
import sys
from gkd_fast.ops import _dispatch
sys.exit(_dispatch.load_cpu() or None)
"""


def runtime_libraries() -> list[str]:
    """Paths of the sanitizers' runtimes that belong to the C++ compiler; empty where it has none."""
    paths = []
    # The runtimes look for the symbols of exceptions when they start: libstdc++ has to be there by then.
    for name in ("libasan.so", "libubsan.so", "libstdc++.so"):
        try:
            found = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return []
        paths.append(found.stdout.strip())
    return paths if all(Path(path).is_absolute() for path in paths) else []


def run_pytest(arguments: list[str]) -> int:
    """Run pytest with instrumented kernels; 0 only if the tests pass and no sanitizer has reported anything."""
    libraries = runtime_libraries()
    if not libraries:
        print("sanitize: expected g++ with libasan and libubsan, found none", file=sys.stderr)
        return 2
    environment = {
        **os.environ,
        "GKD_CXXFLAGS": " ".join(FLAGS),
        "OMP_NUM_THREADS": "2",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }
    # The compiler must not run under the sanitizers; torch loads what it has compiled, here without them.
    building = {**environment, "ASAN_OPTIONS": "verify_asan_link_order=0:detect_leaks=0"}
    if subprocess.run([sys.executable, "-c", BUILD], env=building, check=False).returncode:
        return 2
    with tempfile.TemporaryDirectory() as reports:
        # Whatever a dying process wrote, pytest would have captured: AddressSanitizer reports into files, and beside it
        # UndefinedBehaviorSanitizer only knows the standard error.
        options = f"log_path={reports}/report:print_stacktrace=1:detect_leaks=0"
        environment |= {"LD_PRELOAD": ":".join(libraries), "ASAN_OPTIONS": options, "UBSAN_OPTIONS": options}
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--capture=sys", *arguments]
        status = subprocess.run(command, env=environment, check=False).returncode
        found = [path.read_text() for path in sorted(Path(reports).iterdir())]
    print("".join(found), end="", file=sys.stderr)
    return 1 if found else status


if __name__ == "__main__":
    everything = [str(TESTS), *(f"--ignore={TESTS / name}" for name in LEFT_OUT)]
    sys.exit(run_pytest(sys.argv[1:] or everything))
