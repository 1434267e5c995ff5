"""A distiller's state in a file beside another library's checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from gkd_fast import parallel
from gkd_fast.distiller import Distiller

FILE = "distiller.pt"


def save(distiller: Distiller, folder: str | Path) -> None:
    """Write the state beside the checkpoint; to be called by the process that writes that.

    Args:
        distiller: the main process's.
        folder: of the checkpoint.
    """
    torch.save(distiller.state_dict(), Path(folder) / FILE)


def load(distiller: Distiller, folder: str | Path) -> None:
    """Read what `save` wrote; to be called by every process.

    Args:
        distiller: of the same networks and method.
        folder: of the checkpoint.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = Path(folder) / FILE
    if not path.exists():
        raise FileNotFoundError(f"resume: expected {path}, which distilling writes beside its checkpoints; it is gone")
    state = torch.load(path, map_location=distiller.device, weights_only=True)
    if not parallel.is_main():  # candidates of one process, which count once
        state["_extra_state"]["rings"] = None
    distiller.load_state_dict(state)
