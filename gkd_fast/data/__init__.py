"""Data sets, and the way from one to batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gkd_fast._lazy import lazily

if TYPE_CHECKING:
    from gkd_fast.data.annotated import AnnotatedImages, Detectable, Target
    from gkd_fast.data.loader import EpochSampler, build_loader
    from gkd_fast.data.objects import as_dataset
    from gkd_fast.data.pipeline import PreparedDataset
    from gkd_fast.data.scenes import CONDITIONS, Scenes
    from gkd_fast.data.source import Source, locate, open_dataset, recognise

__all__ = [
    "CONDITIONS",
    "AnnotatedImages",
    "Detectable",
    "EpochSampler",
    "PreparedDataset",
    "Scenes",
    "Source",
    "Target",
    "as_dataset",
    "build_loader",
    "locate",
    "open_dataset",
    "recognise",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "annotated": "AnnotatedImages Detectable Target",
        "loader": "EpochSampler build_loader",
        "objects": "as_dataset",
        "pipeline": "PreparedDataset",
        "scenes": "CONDITIONS Scenes",
        "source": "Source locate open_dataset recognise",
    },
)
