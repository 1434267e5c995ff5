"""Networks of random weights that detect something, the same in every library and on every machine.

A weight is drawn from a generator seeded by its name, times one factor, which is measured once in the library's own
network: names, shapes and factors are then all that it takes to have the weights again. Nothing of gkd_fast is used
here, since this file also runs in the libraries' own environments.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Of outputs by the last part of a layer's name: deviation, mean, and spread of the mean over channels.
_ROLES = {
    "rpn_cls": (1.0, -1.0, 0.3),
    "objectness_logits": (1.0, -1.0, 0.3),
    "rpn_reg": (0.3, 0.0, 0.1),
    "anchor_deltas": (0.3, 0.0, 0.1),
    "retina_cls": (0.8, -4.0, 0.4),
    "retina_reg": (0.4, 0.0, 0.1),
    "fc_cls": (1.7, 0.0, 0.5),
    "fc_reg": (0.8, 0.0, 0.2),
    "cls_score": (1.7, 0.0, 0.5),
    "bbox_pred": (0.8, 0.0, 0.2),
    "cls_logits": (1.0, -1.0, 0.3),
    "bbox_reg": (0.4, 0.0, 0.1),
}
_ONE_STAGE = {"cls_score": "retina_cls", "bbox_pred": "retina_reg", "cls_logits": "retina_cls"}
_LAST_NORM = 0.2  # gain of a residual block's last normalisation, so that deep networks stay in range


def role(layer: str) -> tuple[float, float, float]:
    """What a layer's outputs should be like."""
    start, _, end = layer.rpartition(".")
    if start in ("head", "head.classification_head", "head.regression_head"):
        end = _ONE_STAGE.get(end, end)
    elif start == "rpn.head" and end == "bbox_pred":
        end = "rpn_reg"
    return _ROLES.get(end, (1.0, 0.0, 0.1))


def drawn(name: str, shapes: dict[str, tuple[int, ...]], factors: dict[str, float]) -> Tensor:
    """The value of one entry of a state dict."""
    shape, (layer, _, end) = shapes[name], name.rpartition(".")
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if end == "num_batches_tracked":
        return torch.tensor(1234)
    if f"{layer}.running_mean" not in shapes:
        if end == "bias":
            spread = role(layer)[2]
            return factors.get(name, 0.0) + spread * torch.randn(shape, generator=generator)
        return factors.get(name, 1.0) / math.sqrt(math.prod(shape[1:])) * torch.randn(shape, generator=generator)
    if end in ("running_mean", "bias"):
        return 0.2 * torch.randn(shape, generator=generator)
    value = torch.rand(shape, generator=generator)
    if end == "running_var":
        return 0.6 + 0.8 * value
    return (0.7 + 0.6 * value) * (_LAST_NORM if _ends_block(layer, shapes) else 1.0)


def _ends_block(layer: str, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether a layer normalises the last convolution of a residual block."""
    if layer.endswith((".bn3", ".conv3.norm")):
        return True
    following = layer.replace("bn2", "bn3") if layer.endswith(".bn2") else layer.replace("conv2.norm", "conv3.norm")
    return layer.endswith((".bn2", ".conv2.norm")) and f"{following}.running_mean" not in shapes


def state(shapes: dict[str, tuple[int, ...]], factors: dict[str, float]) -> dict[str, Tensor]:
    """A whole state dict."""
    return {name: drawn(name, shapes, factors) for name in shapes}


@torch.no_grad()
def fill(model: nn.Module, run: Callable[[], Any]) -> tuple[dict[str, tuple[int, ...]], dict[str, float]]:
    """Fill a network with its weights; the shapes, and the factors as they are measured.

    Args:
        model: in evaluation mode.
        run: runs it on an image. Every layer is measured where it is first reached.
    """
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    factors: dict[str, float] = {}
    own = model.state_dict()
    for name in shapes:
        own[name].copy_(drawn(name, shapes, factors))
    names = {module: name for name, module in model.named_modules()}

    def measure(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
        layer = names[module]
        if f"{layer}.weight" in factors:
            return None
        deviation, mean, _ = role(layer)
        bias = module.bias
        plain = output - (0 if bias is None else bias.view(-1, *[1] * (output.dim() - 2)))
        factor = float(np.float32(deviation / plain.std().clamp(min=1e-6).item()))
        factors[f"{layer}.weight"] = factor
        own[f"{layer}.weight"].copy_(drawn(f"{layer}.weight", shapes, factors))
        if bias is not None:
            factors[f"{layer}.bias"] = float(np.float32(mean - factor * plain.mean().item()))
            bias.copy_(drawn(f"{layer}.bias", shapes, factors))
        return type(module).forward(module, *_inputs)

    kinds = (nn.Conv2d, nn.Linear)
    hooks = [m.register_forward_hook(measure) for m in model.modules() if isinstance(m, kinds) and names[m]]
    run()
    for hook in hooks:
        hook.remove()
    return shapes, factors


def picture(height: int, width: int) -> np.ndarray:
    """RGB uint8 [H,W,3]: smooth colour, edges and noise, of sums of whole numbers, the same everywhere."""
    y, x = np.mgrid[:height, :width].astype(np.int64)
    channels = []
    for k in range(3):
        smooth = (x * (3 + k) + y * (5 - k)) // 4 % 256
        boxes = sum(((x // (17 + 9 * i + k)) ^ (y // (13 + 7 * i))) % 2 * (90 >> i) for i in range(3))
        noise = ((x * 73856093) ^ (y * 19349663) ^ ((k + 1) * 83492791)) % 41
        channels.append(np.minimum(abs(smooth - 128) + boxes // 2 + noise, 255))
    return np.stack(channels, 2).astype(np.uint8)


def save(path: Path, shapes: dict[str, tuple[int, ...]], factors: dict[str, float], **arrays: np.ndarray) -> None:
    """Names, shapes and factors of a network, and arrays beside them, in one small file."""
    names = json.dumps([[name, list(shape)] for name, shape in shapes.items()]).encode()
    scales = np.array([factors.get(name, np.nan) for name in shapes], np.float32)
    np.savez_compressed(path, shapes=np.frombuffer(names, np.uint8), factors=scales, **arrays)


def load(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, float], dict[str, np.ndarray]]:
    """The inverse of `save`."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    shapes = {name: tuple(shape) for name, shape in json.loads(arrays.pop("shapes").tobytes())}
    scales = arrays.pop("factors").tolist()
    factors = {name: scale for name, scale in zip(shapes, scales, strict=True) if not math.isnan(scale)}
    return shapes, factors, arrays
