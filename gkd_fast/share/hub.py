"""A finished run's detector as a folder for a hub, and the way there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from gkd_fast.config import Config, from_dict, to_dict
from gkd_fast.errors import InputError, RunError
from gkd_fast.files import replacing, write_json
from gkd_fast.options import changed, values_of
from gkd_fast.runs.detector_file import FORMAT, load_detector
from gkd_fast.runs.folders import read_config
from gkd_fast.runs.shared_file import write_shared
from gkd_fast.share.card import model_card

Network = Literal["distilled", "student", "teacher"]
_DRAWN = "Scenes drawn by gkd_fast (no photographs)"


def shared_folder(run: Path, output: Path, network: Network, title: str, licence: str) -> list[Path]:
    """Write ``model.safetensors``, ``config.json`` and the card, ``README.md``; paths of this machine are left out.

    Args:
        run: folder of a finished run.
        output: folder to write to, made here.
        network: which of the run's.
        title: name on the hub, or of the run.
        licence: of the weights; empty: none is stated.

    Returns:
        The files.

    Raises:
        InputError: for a folder that holds no finished run, or none of this network.
    """
    config, summary = read_config(run / "config.json"), _summary(run)
    checkpoint = load_detector(run / network / "model.pt")
    output.mkdir(parents=True, exist_ok=True)
    weights, settings, card = (output / name for name in ("model.safetensors", "config.json", "README.md"))
    content = {"format": FORMAT, "spec": checkpoint.spec.to_dict(), "classes": list(checkpoint.classes)}
    stored = to_dict(_without_paths(from_dict(checkpoint.config)))
    content |= {"model": checkpoint.model, "config": stored, "ap": summary[network]["AP"]}
    with replacing(weights) as temporary:
        write_shared(content, temporary)
    write_json(settings, to_dict(_without_paths(config)))
    root = config.data.data_root
    data = _DRAWN if config.data.data == "scenes" else root.resolve().name if root else config.data.data
    with replacing(card) as temporary:
        text = model_card(title, network, _without_paths(config), summary, licence, data)
        temporary.write_text(text, encoding="utf-8")
    return [weights, settings, card]


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Put a folder onto the Hugging Face hub, as who is logged in there; returns its address.

    Raises:
        InputError: if huggingface_hub is not installed.
        RunError: if the hub refuses.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise InputError("--repo: needs the package huggingface_hub; pip install 'gkd_fast[hub]'") from error
    api = HfApi(library_name="gkd_fast")
    try:
        made = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Weights and card by gkd_fast")
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise RunError(f"--repo: {repository} could not be uploaded: {str(error).partition(chr(10))[0]}") from error
    return str(made)


def _summary(run: Path) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
        return summary
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{run}: expected the folder of a finished run; its summary.json cannot be read") from error


def _without_paths(config: Config) -> Config:
    """Paths tell of the machine, and nothing to anybody else."""
    paths = {name: None for name, value in values_of(config).items() if isinstance(value, Path)}
    return dataclasses.replace(changed(config, paths))
