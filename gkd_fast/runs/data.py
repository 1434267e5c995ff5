"""The images of a run: read and checked once, and said in the run's first lines."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gkd_fast import parallel
from gkd_fast.config import Config
from gkd_fast.data import AnnotatedImages, PreparedDataset, Scenes, Source, locate
from gkd_fast.data.describe import describe, in_both
from gkd_fast.errors import InputError


@dataclass(frozen=True)
class Images:
    """What is trained on and what is evaluated on, as read. parted: both are parts of one split, and have the findings
    of all of it."""

    train: AnnotatedImages | Scenes
    val: AnnotatedImages | Scenes
    parted: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in label order."""
        return self.train.classes

    def relabelled(self, classes: tuple[str, ...]) -> Images:
        """The same with labels in another order."""
        if classes == self.classes:
            return self
        assert not isinstance(self.train, Scenes)
        assert not isinstance(self.val, Scenes)
        return replace(self, train=self.train.relabelled(classes), val=self.val.relabelled(classes))


@dataclass(frozen=True)
class Data:
    """The prepared data of a run."""

    train: PreparedDataset
    val: PreparedDataset
    classes: tuple[str, ...]


def source_of(config: Config) -> Source:
    """Where the images of a configuration lie; not for the scenes."""
    data = config.data
    return locate(
        data.data_root,
        data.data,
        train_split=data.train_split,
        val_split=data.val_split,
        train_annotations=data.train_annotations,
        train_images=data.train_images,
        val_annotations=data.val_annotations,
        val_images=data.val_images,
        val_fraction=data.val_fraction,
        seed=config.run.seed if data.val_seed is None else data.val_seed,
    )


def read_images(config: Config, *, told: bool = True) -> Images:
    """Read and check both splits.

    Args:
        config: with the format of the data.
        told: whether what was found there is printed.

    Raises:
        InputError: naming the files or the option that cannot be used.
    """
    data = config.data
    if data.data == "objects":
        raise InputError("data: expected the data sets that this run was given from Python (train_data=, val_data=)")
    if data.data == "scenes":
        images = Images(_scenes(config, "train"), _scenes(config, "val"))
        _say(told, [f"data: drawn scenes, {len(images.train)} to train on, {len(images.val)} to evaluate on"])
        return images
    source = source_of(config)
    train_name, val_name = source.names
    kept = "" if source.val else f", of which a part of {source.fraction:g} is kept to evaluate on (--val-fraction)"
    others = f"; not used: {', '.join(source.others)}" if source.others else ""
    _say(told, [f"data: {source.what}, split {train_name} to train on{kept or f', {val_name} to evaluate on'}{others}"])
    splits = source.read(data.classes, levels=data.grey_levels)
    train = next(splits)
    _say(told, describe("train", train))
    val = next(splits)
    _say(told, [*describe("val", val), *in_both(train, val)])
    return Images(train, val, parted=source.val is None)


def tell(images: Images) -> None:
    """Say what data sets from Python hold."""
    assert isinstance(images.train, AnnotatedImages)
    assert isinstance(images.val, AnnotatedImages)
    lines = [*describe("train", images.train), *describe("val", images.val), *in_both(images.train, images.val)]
    _say(True, ["data: given from Python", *lines])


def read_val(config: Config, classes: tuple[str, ...]) -> AnnotatedImages | Scenes:
    """Read the validation images alone, for the classes of a finished detector."""
    if config.data.data == "scenes":
        return _scenes(config, "val", classes)
    if config.data.data == "objects":
        raise InputError("--data-root: expected the folder of the data set, for the detector's was given from Python")
    source = source_of(config)
    val = source.read_val(classes, levels=config.data.grey_levels)
    _say(True, [f"data: {source.what}", *describe("val", val)])
    return val


def prepare(config: Config, images: Images) -> Data:
    """Resize and augment as the settings say."""
    return Data(prepared(config, images.train, flip=config.data.flip), prepared(config, images.val), images.classes)


def prepared(config: Config, dataset: AnnotatedImages | Scenes, *, flip: float = 0.0) -> PreparedDataset:
    """A data set resized as the settings say."""
    data = config.data
    sides = {"short_side": data.short_side, "long_side": data.long_side}
    return PreparedDataset(dataset, **sides, flip=flip, seed=config.run.seed, cache=data.cache)


def _scenes(config: Config, role: str, classes: tuple[str, ...] = ()) -> Scenes:
    data = config.data
    classes = classes or data.classes
    if classes and tuple(classes) != Scenes.classes:
        raise InputError(f"classes: expected those of the scenes, {', '.join(Scenes.classes)}")
    split = (data.train_split if role == "train" else data.val_split) or role
    count = data.scenes_train if role == "train" else data.scenes_val
    # Scenes of different splits never coincide.
    seed = int(np.random.SeedSequence((0, *split.encode())).generate_state(1)[0])
    return Scenes(count, size=(data.short_side, data.short_side), seed=seed)


def _say(told: bool, lines: list[str]) -> None:
    if told and parallel.is_main():
        print("\n".join(lines), flush=True)
