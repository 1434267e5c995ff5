"""Every setting of a run and its default, composed of the rooms' own.

The dataclasses are frozen and keyword-only. The command line is made from them, so the text under a field is also its
help, and from the marks beside it: its range, and whether the short help shows it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from gkd_fast.data.settings import DataConfig
from gkd_fast.detectors.settings import OFFERED, ModelConfig
from gkd_fast.errors import InputError
from gkd_fast.methods import Method, Settings, check_needs
from gkd_fast.options import MAIN, changed, check_options, options_of, values_of
from gkd_fast.ranges import NOT_NEGATIVE, POSITIVE
from gkd_fast.tracking import check_trackers


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimisation of the student; the teacher's own training shares all but its length, batch and rate."""

    epochs: Annotated[int, POSITIVE, MAIN] = 4
    """Epochs of the student, alone and distilled."""
    teacher_epochs: Annotated[int, POSITIVE, MAIN] = 12
    """Epochs of the teacher, where no checkpoint is given."""
    batch_size: Annotated[int, POSITIVE, MAIN] = 4
    """Images a step."""
    teacher_batch_size: Annotated[int, NOT_NEGATIVE] = 0
    """Images a step of the teacher's own training; 0: as many as the student's."""
    optimizer: Annotated[Literal["sgd", "adamw"], MAIN] = "adamw"
    """SGD (momentum 0.9) or AdamW."""
    lr: Annotated[float, POSITIVE, MAIN] = 2e-3
    """Learning rate after warm-up."""
    teacher_lr: Annotated[float, POSITIVE, MAIN] = 2e-3
    """Learning rate of the teacher's own training."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 1e-4
    """Weight decay."""
    warmup_steps: Annotated[int, NOT_NEGATIVE] = 50
    """Steps of linear warm-up."""
    schedule: Literal["multistep", "cosine"] = "cosine"
    """Learning rate after warm-up: divided by ten at the milestones, or a half cosine to zero."""
    milestones: tuple[int, ...] = (16, 22)
    """Epochs after which the multi-step schedule divides the rate by ten."""
    clip_norm: Annotated[float, NOT_NEGATIVE] = 10.0
    """Upper limit of the gradient's norm; 0: none."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where and how the run executes."""

    output: Annotated[Path | None, MAIN] = None
    """Folder of the run's results; none: the next free runs/DATA-N."""
    resume: Annotated[Literal["off", "on", "auto"], MAIN] = "off"
    """Go on with the run in --output, or with the newest one in runs/, with its settings (--resume alone: on);
    auto: the same, or a new run where there is none."""
    device: Annotated[Literal["auto", "cpu", "cuda"], MAIN] = "auto"
    """Device; auto: the GPU where one is there."""
    amp: Annotated[bool, MAIN] = False
    """Mixed precision."""
    amp_dtype: Literal["bf16", "fp16"] = "bf16"
    """Number format of mixed precision; fp16 (with a gradient scaler) needs a GPU."""
    compile: Annotated[Literal["auto", "on", "off"], MAIN] = "auto"
    """Compile the whole step, images to gradients, as one graph a size bucket (--compile: on, --no-compile: off);
    auto: on a GPU, once the rest of the training wins back the time that compiling takes (bench/README.md)."""
    bad_steps: Annotated[int, POSITIVE] = 10
    """Steps in a row with a loss or gradient that is not finite, none of which changes a weight, that end the run."""
    grad_norm_steps: Annotated[int, NOT_NEGATIVE] = 0
    """Steps between two measurements of the norm of every loss term's gradient on the student's feature pyramid,
    written to metrics.jsonl; each costs a backward pass of the heads a term; 0: none."""
    seed: Annotated[int, NOT_NEGATIVE, MAIN] = 0
    """Seed of weights, data order and augmentation."""
    log_steps: Annotated[int, POSITIVE] = 10
    """Steps between two lines of metrics.jsonl."""
    checkpoint_steps: Annotated[int, POSITIVE] = 200
    """Steps between two checkpoints; a training ends with one."""
    keep_checkpoints: Annotated[int, POSITIVE] = 3
    """The last checkpoints of each network's training that are kept."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: every process holds the whole student (DDP), or its part of weights and optimiser (FSDP2)."""
    shard_teacher: bool = False
    """Under torchrun: every process holds its part of the frozen teacher, which may be larger than one device."""
    skip_teacher_check: bool = False
    """Train with a given teacher whatever it reaches on the validation images."""
    track: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()
    """Programs that get the metrics as they are written; each is a package of its own (pip install gkd_fast[NAME])."""
    dry_run: Annotated[bool, MAIN] = False
    """Build both networks, train two steps on one drawn image of full size, and print parameters and estimates of
    memory and time; needs no data and writes nothing."""
    sync_norm: bool = False
    """Under torchrun, on GPUs: batch normalisation by the statistics of the whole batch, not of a process's share."""


# Small images of small objects; 100 images a class keep the refresh short.
SCENES_DISTILL: dict[str, Any] = {"min_box": 16.0, "candidate_images": 100}
# A step of the teacher takes about as long for eight images as for four, with an optimiser of eleven million weights.
SCENES_OPTIM: dict[str, Any] = {"teacher_batch_size": 8, "teacher_epochs": 10}


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run; the defaults are those of the run without options, on the embedded scenes."""

    preset: Annotated[str, MAIN] = "scenes"
    """Named settings to start from, comma-separated; later ones win, single options win over all."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    distill: Settings = field(default_factory=lambda: Settings(**SCENES_DISTILL))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(**SCENES_OPTIM))
    run: RunConfig = field(default_factory=RunConfig)


SECTIONS = ("data", "model", "distill", "optim", "run")

# Every section's own defaults, from which the presets start.
PLAIN = Config(preset="", distill=Settings(), optim=OptimConfig())


def validate(config: Config) -> None:
    """Check a configuration: the ranges of all options, and what several of them have to agree on.

    Raises:
        InputError: naming the option, what was expected and what was given.
    """
    check_options(config)
    data, model, run = config.data, config.model, config.run
    offered = OFFERED["one_stage" if model.detector == "retinanet" else "two_stage"]
    check_needs(Method.parse(config.distill.method, "--method").names, offered, "--method")
    if data.long_side < data.short_side:
        raise InputError(f"--long-side: expected at least --short-side {data.short_side}, got {data.long_side}")
    named = data.data in ("auto", "scenes", "objects") or data.data_root or data.train_annotations
    if not named and not run.dry_run:
        raise InputError(f"--data-root: expected the folder of the {data.data} data set, got nothing")
    if data.val_fraction and (data.val_split or data.val_annotations):
        raise InputError(f"--val-fraction: expected none beside images to evaluate on, got {data.val_fraction:g}")
    check_trackers(run.track)
    if run.amp_dtype == "fp16" and run.amp and run.device == "cpu":
        raise InputError("--amp-dtype: fp16 needs a GPU; expected bf16 on the CPU")


def replace(config: Config, section: str, **values: object) -> Config:
    """A copy of the configuration with fields of one section changed."""
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as JSON types: of every section its options by name, paths as text."""
    sections = {name: values_of(getattr(config, name)) for name in SECTIONS}
    return {"preset": config.preset} | {
        name: {option: _plain(value) for option, value in values.items()} for name, values in sections.items()
    }


# What runs did before these were settings: one that goes on keeps its loss.
_BEFORE = {"feature_units": "published", "box_levels": "own", "background_trust": "none", "adapter": "1x1"}


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `to_dict`. What it lacks is younger than the file and has the default of its section, but for
    what changed the loss.

    Raises:
        InputError: for a field that does not exist, or a value of another type.
    """
    sections = {}
    if "method" in values.get("distill", {}) or "terms" in values.get("distill", {}):
        values = {**values, "distill": _BEFORE | values["distill"]}
    for name in SECTIONS:
        section, given = getattr(PLAIN, name), values.get(name, {})
        known = {own for option in options_of(type(section)) for own in (option.name, *option.aliases)}
        if unknown := sorted(set(given) - known):
            raise InputError(f"configuration: unknown fields in {name}: {', '.join(unknown)}")
        try:
            sections[name] = changed(section, given)
        except TypeError as error:
            raise InputError(f"configuration: {error}") from error
    return Config(preset=values.get("preset", ""), **sections)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
