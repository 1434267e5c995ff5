"""``python -m bench.convolutions``: layers of many weights as matrix products beside torch's, on a CPU in bfloat16."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional

from gkd_fast.training.convolution_product import Window
from gkd_fast.training.linear_product import is_faster_with_copy, linear_product

# (images, channels, output channels, side, kernel, stride): ResNet-18, MobileNetV2 and their pyramids on 128 x 128
# pixels, then ResNet-50 on 256 x 256 and 800 x 800.
LAYERS = (
    (8, 512, 512, 4, 3, 1),
    (8, 256, 512, 8, 3, 2),
    (8, 256, 512, 8, 1, 2),
    (8, 256, 256, 8, 3, 1),
    (8, 128, 256, 16, 3, 2),
    (8, 128, 128, 16, 3, 1),
    (8, 64, 64, 8, 3, 1),
    (8, 112, 1280, 4, 1, 1),
    (8, 336, 56, 4, 1, 1),
    (8, 144, 24, 8, 1, 1),
    (8, 96, 16, 16, 1, 1),
    (8, 8, 48, 32, 1, 1),
    (4, 512, 512, 8, 3, 1),
    (2, 512, 512, 25, 3, 1),
    (2, 256, 1024, 25, 1, 1),
    (2, 256, 64, 100, 1, 1),
)
# (rows, inputs, outputs) of box heads, of the main job's first.
LINEAR = (
    (256, 2352, 128),
    (512, 3136, 256),
    (512, 3136, 512),
    (512, 12544, 1024),
    (2048, 12544, 1024),
    (2048, 1024, 1024),
)
_ROUNDS, _PASSES = 15, 4


def compared(
    images: int, channels: int, outputs: int, side: int, kernel: int, stride: int
) -> tuple[float, float, bool]:
    """Milliseconds forward and backward of the convolution and of the product; whether training takes the latter."""
    layout = torch.channels_last
    x = torch.randn(images, channels, side, side).bfloat16().to(memory_format=layout).requires_grad_()
    weight = torch.empty(outputs, channels, kernel, kernel, memory_format=layout).normal_().requires_grad_()
    window = Window((kernel, kernel), (stride, stride), (kernel // 2, kernel // 2))
    cotangent = torch.randn_like(window.convolve(x.detach(), weight.detach().bfloat16()))
    ways = {
        "convolution": lambda: torch.conv2d(x, weight, None, stride, kernel // 2),
        "product": lambda: window.convolve(x, weight),
    }
    return *_milliseconds(ways, x, weight, cotangent), window.is_faster_as_product(x, weight)


def compared_linear(rows: int, inputs: int, outputs: int) -> tuple[float, float, bool]:
    """Milliseconds forward and backward of torch's layer and of the product; whether the latter copies a gradient."""
    x, cotangent = torch.randn(rows, inputs).bfloat16().requires_grad_(), torch.randn(rows, outputs).bfloat16()
    weight = torch.randn(outputs, inputs).bfloat16().requires_grad_()
    ways = {"linear": lambda: functional.linear(x, weight), "product": lambda: linear_product(x, weight)}
    return *_milliseconds(ways, x, weight, cotangent), is_faster_with_copy(weight)


def _milliseconds(
    ways: dict[str, Callable[[], Tensor]], x: Tensor, weight: Tensor, cotangent: Tensor
) -> tuple[float, float]:
    """Forward and backward of both ways."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(_ROUNDS):
        for way, forward in ways.items():
            started = time.perf_counter()
            for _ in range(_PASSES):
                x.grad = weight.grad = None
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    y = forward()
                y.backward(cotangent)
            seconds[way].append((time.perf_counter() - started) / _PASSES)
    first, second = (1e3 * median(found) for found in seconds.values())
    return first, second


def main() -> None:
    """Print a line for every layer."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(f"{torch.get_num_threads()} threads; forward and backward, medians of {_ROUNDS} rounds by turns\n")
    print("| images x channels | side | kernel, stride | convolution ms | product ms | ratio | taken |")
    print("|---|---:|---|---:|---:|---:|---|")
    for images, channels, outputs, side, kernel, stride in LAYERS:
        convolution, product, taken = compared(images, channels, outputs, side, kernel, stride)
        print(
            f"| {images} x {channels} to {outputs} | {side} | {kernel}, {stride} | {convolution:.2f} | {product:.2f} |"
            f" {convolution / product:.2f} | {'product' if taken else 'convolution'} |",
            flush=True,
        )
    print("\n| rows | inputs to outputs | linear ms | product ms | ratio | copies |")
    print("|---:|---|---:|---:|---:|---|")
    for rows, inputs, outputs in LINEAR:
        linear, product, taken = compared_linear(rows, inputs, outputs)
        print(
            f"| {rows} | {inputs} to {outputs} | {linear:.2f} | {product:.2f} | {linear / product:.2f}"
            f" | {'yes' if taken else 'no'} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
