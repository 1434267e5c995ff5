"""From the options that were given to the settings that a run has: what is left open is found or chosen here."""

from __future__ import annotations

from collections.abc import Collection

import torch

from gkd_fast import parallel
from gkd_fast.config import Config, replace, validate
from gkd_fast.data import AnnotatedImages, recognise
from gkd_fast.runs.choice import Choice, Device, choose, lines
from gkd_fast.runs.data import Images, read_images, tell
from gkd_fast.training.precision import resolve_device


def settle(
    config: Config, given: Collection[str], *, new: bool = True, own: Images | None = None
) -> tuple[Config, Images]:
    """The settings of a run, and its images.

    The format of the data is found; without a preset, what was not given is chosen from the data and the device.
    Everything chosen is printed.

    Args:
        config: as the options say.
        given: names of the options that were given.
        new: whether the run begins; else its settings are chosen already.
        own: images that are read already, instead of those that the settings name.

    Raises:
        InputError: for input that cannot be used.
    """
    config, images, choices = settle_with_reasons(config, given, new=new, own=own)
    if parallel.is_main() and choices:
        print("\n".join(lines(choices)), flush=True)
    return config, images


def settle_with_reasons(
    config: Config, given: Collection[str], *, new: bool = True, own: Images | None = None
) -> tuple[Config, Images, list[Choice]]:
    """The same, with what was chosen and why, which is not printed."""
    config = replace(config, "data", data="objects") if own else with_format(config)
    config = _precision(config, given)
    images = own or read_images(config)
    choices: list[Choice] = []
    if own:
        tell(own)
    if isinstance(images.train, AnnotatedImages):
        if images.train.levels:
            config = replace(config, "data", grey_levels=images.train.levels)
        if new and not config.preset:
            device = resolve_device(config.run.device)
            config, choices = choose(config, images.train, Device.found(device), given)
    validate(config)
    return config, images, choices


def with_format(config: Config) -> Config:
    """The settings with the format of the data, as it is found in its folder."""
    data = config.data
    if data.data != "auto":
        return config
    if data.train_annotations:
        return replace(config, "data", data="coco")
    if data.data_root is None:
        return replace(config, "data", data="scenes")
    return replace(config, "data", data=recognise(data.data_root).kind)


def _precision(config: Config, given: Collection[str]) -> Config:
    """Without --amp where the processor computes bf16 by float32, many times slower than float32 itself."""
    run = config.run
    on_cpu = resolve_device(run.device).type == "cpu"
    if not (run.amp and on_cpu) or "amp_dtype" in given or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return config
    if parallel.is_main():
        print(
            "--amp: this processor has no instructions for bf16, with which training would take many times as long; "
            "float32 it is (--amp-dtype bf16 insists)",
            flush=True,
        )
    return replace(config, "run", amp=False)
