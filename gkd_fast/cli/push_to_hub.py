"""``gkd-fast push-to-hub``: a finished run's detector for other people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from gkd_fast.cli.parsing import parse
from gkd_fast.detectors.settings import check_checkpoint
from gkd_fast.errors import InputError

_DESCRIPTION = """Write a finished run's detector as safetensors weights with a model card (data, figures, method,
licence), and upload both to the Hugging Face hub if --repo names a place there. Nothing is uploaded without it."""


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """Sharing of one detector."""

    run: tyro.conf.Positional[Path | None] = None
    """Folder of a finished run."""
    repo: str = ""
    """Repository on the hub, USER/NAME, made if it is not there; empty: nothing is uploaded."""
    network: Literal["distilled", "student", "teacher"] = "distilled"
    """Which network of the run."""
    license: str = ""
    """Licence of the weights in the hub's spelling (apache-2.0, cc-by-4.0, ...); empty: none is stated."""
    output: Path | None = None
    """Folder to write; none: RUN/hub."""
    private: bool = False
    """Make the repository a private one."""


def main(arguments: Sequence[str]) -> None:
    """Parse, write, upload."""
    options = parse(arguments, "push-to-hub", _DESCRIPTION, PushConfig())
    if options.run is None:
        raise InputError("RUN: expected the folder of a finished run, got nothing; --help shows all options")
    if options.repo and options.repo.count("/") != 1:
        raise InputError(f"--repo: expected USER/NAME, got {options.repo}")
    check_checkpoint(options.run / options.network / "model.pt")
    from gkd_fast.share.hub import shared_folder, upload

    output = options.output or options.run / "hub"
    title = options.repo or options.run.resolve().name
    for file in shared_folder(options.run, output, options.network, title, options.license):
        print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
    if options.repo:
        print(upload(output, options.repo, private=options.private))
    else:
        print("not uploaded: --repo USER/NAME does that")
