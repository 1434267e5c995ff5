"""Rows of Hugging Face's datasets, by an object of the same face; the library itself is in tests/integrations."""

import pytest
import torchvision

from gkd_fast.data import as_dataset


def test_other_objects_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"expected torchvision's CocoDetection .*, got a FakeData"):
        as_dataset(torchvision.datasets.FakeData(3))
