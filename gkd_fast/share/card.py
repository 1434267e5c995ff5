"""The model card of a finished run."""

from __future__ import annotations

from typing import Any

from gkd_fast.config import PLAIN, SECTIONS, Config, to_dict
from gkd_fast.runs.summary import summary_table

_ROLES = {"teacher": "The teacher", "student": "The student trained alone", "distilled": "The distilled student"}
_SAID = {"classes", "data", "train_split", "val_split", "method", "teacher", "student", "detector"}
_CITATION = """@inproceedings{tang2022distilling,
  title     = {Distilling Object Detectors with Global Knowledge},
  author    = {Tang, Sanli and Zhang, Zhongyu and Cheng, Zhanzhan and Lu, Jing and Xu, Yunlu and Niu, Yi and He, Fan},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year      = {2022}
}"""


def model_card(title: str, network: str, config: Config, summary: dict[str, Any], licence: str, data: str) -> str:
    """Markdown with the hub's metadata.

    Args:
        title: of the card.
        network: teacher, student or distilled.
        config: of the run.
        summary: content of its ``summary.json``.
        licence: of the weights, in the hub's spelling; empty: none is stated.
        data: name of the data set.
    """
    table = summary_table({key: value for key, value in summary.items() if key != "robust_weights"})
    own, classes = config.data, ", ".join(summary["classes"])
    train, val = own.train_split or "its training images", own.val_split or "its validation images"
    parts = (
        _head(licence),
        f"# {title}\n\n{_ROLES[network]} of a run of gkd_fast: a "
        f"{config.model.detector} of {config.model.teacher.backbone} was distilled into one of "
        f"{config.model.student.backbone} by the method `{config.distill.method}`.",
        f"## Figures\n\nAP in percent on the validation images of the data below; one run, seed {config.run.seed}.\n\n"
        f"{table}",
        f"## Data\n\n{data}, trained on {train}, evaluated on {val}. Classes, labels from 1: "
        f"{classes}. Images are resized to a short side of "
        f"{own.short_side} and a long side of at most {own.long_side} pixels.",
        f"## Settings\n\nPreset `{config.preset or 'none'}`; what differs from the defaults:\n\n{_settings(config)}",
        f"## Use\n\n{_use(title)}",
        f"## Licence\n\n{licence or 'None was stated for these weights.'} The data have a licence of their own.",
        f"## Citation\n\n```bibtex\n{_CITATION}\n```\n",
    )
    return "\n\n".join(parts)


def _head(licence: str) -> str:
    tags = "".join(f"\n  - {tag}" for tag in ("object-detection", "knowledge-distillation", "torchvision"))
    stated = f"\nlicense: {licence}" if licence else ""
    return f"---\nlibrary_name: gkd_fast\npipeline_tag: object-detection{stated}\ntags:{tags}\n---"


def _settings(config: Config) -> str:
    stored, plain = to_dict(config), to_dict(PLAIN)
    changed = [
        f"- `--{name.replace('_', '-')} {value}`"
        for section in SECTIONS
        for name, value in stored[section].items()
        if value != plain[section][name] and name not in _SAID and value is not None
    ]
    return "\n".join(changed) or "nothing"


def _use(title: str) -> str:
    return f"""```python
import gkd_fast
from huggingface_hub import hf_hub_download

detector = gkd_fast.load(hf_hub_download("{title}", "model.safetensors"))
(found,) = detector([image])  # float [3,H,W] in 0..1 of any size -> boxes, scores, labels from 1
```"""
