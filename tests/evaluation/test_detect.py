"""A detector run over a data set: every image keeps its own detections, which the host fetches batch by batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gkd_fast.data import Scenes
from gkd_fast.data.pipeline import PreparedDataset
from gkd_fast.evaluation.detect import detect


class Growing(nn.Module):
    """Finds one box more in every image than in the one before it, in the first none."""

    def __init__(self) -> None:
        super().__init__()
        self.images = 0

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        first, self.images = self.images, self.images + len(images)
        return [expected(number) for number in range(first, self.images)]


def expected(number: int) -> dict[str, Tensor]:
    boxes = torch.arange(4.0 * number).view(number, 4)
    return {"boxes": boxes, "scores": boxes[:, 0] / 64, "labels": torch.arange(number) + number}


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_every_image_keeps_its_detections(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = PreparedDataset(Scenes(5, size=(64, 96)), short_side=32, long_side=48, flip=0.0)
    copies, cpu = [], Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: copies.append(tensor.shape) or cpu(tensor))
    device = torch.device("cpu")
    found = detect(Growing(), data, batch_size=batch_size, workers=0, device=device)
    assert len({own["image_id"] for own in found}) == 5
    for number, own in enumerate(found):
        wanted = expected(number)
        assert torch.equal(own["boxes"], 2 * wanted["boxes"])
        for name in ("scores", "labels"):
            assert torch.equal(own[name], wanted[name])
            assert own[name].dtype == wanted[name].dtype
            # What another process is sent is the storage.
            assert own[name].untyped_storage().nbytes() == wanted[name].nbytes
    assert len(copies) == 3 * -(-5 // batch_size)
