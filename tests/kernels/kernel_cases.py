"""What the tests of the kernels share: inputs, and the comparison with the reference."""

import sys
from pathlib import Path

import torch
from torch.utils._pytree import tree_leaves, tree_map

from gkd_fast import ops

sys.path.append(str(Path(__file__).parents[1] / "ops"))
from ops_cases import LAYOUTS, NAN, ODD_BOXES, ODD_IMAGES, STRIDES, boxes_of, laid_out, leaf, pyramid

__all__ = [
    "LAYOUTS",
    "NAN",
    "ODD_BOXES",
    "ODD_IMAGES",
    "STRIDES",
    "agree",
    "boxes_of",
    "draw",
    "laid_out",
    "leaf",
    "pyramid",
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def draw(*shape, dtype=torch.float32, seed=0):
    """Normal numbers that collect a gradient."""
    return leaf(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype))


def run(backend, function, arguments, weights):
    """Outputs, and the gradients of their weighted sum with respect to all leaves."""
    leaves = [t for t in tree_leaves(arguments) if isinstance(t, torch.Tensor) and t.requires_grad]
    with ops.use_backend(backend):
        outputs = tree_leaves(function(*arguments))
    differentiable = [out for out in outputs if out.requires_grad]
    total = sum((out.double() * w[: out.numel()].view(out.shape)).sum() for out, w in zip(differentiable, weights))  # noqa: B905
    return outputs, torch.autograd.grad(total, leaves) if leaves else ()


def agree(function, *arguments, tolerance=1e-5):
    """Outputs and gradients of the kernels are those of the reference in float64, each in its own dtype's rounding."""
    exact = tree_map(
        lambda t: (
            t.double().detach().requires_grad_(t.requires_grad)
            if isinstance(t, torch.Tensor) and t.is_floating_point()
            else t
        ),
        arguments,
    )
    weights = [torch.rand(1 << 14, dtype=torch.float64, generator=torch.Generator().manual_seed(7)) for _ in range(4)]
    outputs, gradients = run("triton", function, arguments, weights)
    wanted, wanted_gradients = run("reference", function, exact, weights)
    for got, want in zip(outputs, wanted, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance, equal_nan=True)
    leaves = [t for t in tree_leaves(arguments) if isinstance(t, torch.Tensor) and t.requires_grad]
    for got, want, given in zip(gradients, wanted_gradients, leaves, strict=True):
        assert got.dtype == given.dtype
        scale = want.abs().max().item() if want.numel() else 1.0
        bound = max(tolerance, ROUNDING[got.dtype])
        torch.testing.assert_close(got.double(), want, rtol=bound, atol=max(1e-7, scale * bound / 64))
    return outputs
