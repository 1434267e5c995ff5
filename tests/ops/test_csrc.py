"""The C++ sources: a namespace for each device, and no two headers that a name alone does not tell apart."""

import re
from collections import Counter
from pathlib import Path

import pytest

from gkd_fast.ops import _build, reference

CSRC = _build.source_root()
OPERATORS = {path.stem for path in Path(reference.__file__).parent.glob("*.py")}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_everything_of_a_device_is_in_its_namespace(device):
    for path in sorted((CSRC / device).iterdir()):
        opened = set(re.findall(r"^namespace (gkd\S*) \{", path.read_text(), re.MULTILINE))
        assert opened == {f"gkd::{device}"}, path.name


def test_headers_have_names_of_their_own():
    names = Counter(path.stem for path in CSRC.rglob("*.*h") if path.stem not in OPERATORS)
    assert [name for name, count in names.items() if count > 1] == []
