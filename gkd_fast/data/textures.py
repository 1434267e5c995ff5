"""Colours, surface patterns and backgrounds of the drawn scenes. Images are float32 [3,H,W] in 0..1."""

from functools import lru_cache

import numpy as np

Array = np.ndarray
Generator = np.random.Generator

PATTERNS = ("plain", "gradient", "stripes", "checks", "dots", "rings")


def _wave(phase: Array) -> Array:
    """A square wave of period 2 pi with soft flanks, in 0..1."""
    return np.clip(0.5 + 1.5 * np.sin(phase), 0, 1)


def pattern(kind: str, u: Array, v: Array, period: float, phase: float) -> Array:
    """The mixture in 0..1 of two colours over coordinates u, v (float32 [h,w], pixels; period in pixels)."""
    k = np.float32(2 * np.pi / period)
    shift = np.float32(phase)
    if kind == "plain":
        return np.zeros_like(u)
    if kind == "gradient":
        return np.clip(0.5 + u / np.float32(3 * period), 0, 1)
    if kind == "stripes":
        return _wave(k * u + shift)
    if kind == "checks":
        return np.clip(0.5 + 2 * np.sin(k * u + shift) * np.sin(k * v + shift), 0, 1)
    if kind == "dots":
        return np.clip(np.cos(k * u + shift) + np.cos(k * v + shift) - 0.4, 0, 1)
    if kind == "rings":
        return _wave(k * np.hypot(u, v) + shift)
    raise ValueError(f"expected a pattern of {PATTERNS}, got {kind!r}")


def colour(
    rng: Generator, saturation: tuple[float, float], value: tuple[float, float], hue: float | None = None
) -> Array:
    """A random colour, float32 [3,1,1]; saturation and value uniform in their ranges, hue in 0..1 or uniform."""
    hue = rng.random() if hue is None else hue % 1
    s, v = rng.uniform(*saturation), rng.uniform(*value)
    ramp = np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    return (v * (1 - s * (1 - np.clip(ramp, 0, 1)))).astype(np.float32)[:, None, None]


@lru_cache(maxsize=64)
def _upsampling(length: int, cells: int) -> Array:
    """Linear interpolation from `cells` knots to `length` pixels as a matrix [length, cells]."""
    at = np.linspace(0, cells - 1, length, dtype=np.float32)[:, None]
    return np.clip(1 - np.abs(at - np.arange(cells, dtype=np.float32)), 0, 1)


def noise(rng: Generator, size: tuple[int, int], cells: int, channels: int) -> Array:
    """Smooth noise, float32 [channels,H,W] in -1..1, with `cells` knots along each side."""
    knots = rng.uniform(-1, 1, (channels, cells, cells)).astype(np.float32)
    return _upsampling(size[0], cells) @ knots @ _upsampling(size[1], cells).T


@lru_cache(maxsize=64)
def _gaussian(length: int, sigma_tenths: int) -> Array:
    at = np.arange(length, dtype=np.float32)
    weights = np.exp(-0.5 * ((at[:, None] - at) * (10 / sigma_tenths)) ** 2)
    return (weights / (sigma_tenths / 10 * np.sqrt(2 * np.pi))).astype(np.float32)


def blur(image: Array, sigma: float) -> Array:
    """Gaussian blur of float32 [C,h,w] with nothing beyond the border; sigma in pixels, a multiple of 0.1."""
    tenths = max(3, round(10 * sigma))
    height, width = image.shape[-2:]
    return _gaussian(height, tenths) @ image @ _gaussian(width, tenths)


def background(rng: Generator, size: tuple[int, int]) -> Array:
    """A varied background: a weak pattern between two dull colours, clouds at three scales, uneven light."""
    height, width = size
    unit = min(size) / 192
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    u = np.float32(np.cos(angle)) * (x - width / 2) + np.float32(np.sin(angle)) * (y - height / 2)
    v = np.float32(np.cos(angle)) * (y - height / 2) - np.float32(np.sin(angle)) * (x - width / 2)
    # Stripes and rings bent by low noise look like wood and cloth instead of test charts.
    bend = noise(rng, size, 5, 1)[0] * np.float32(rng.uniform(0, 14) * unit)
    kind = PATTERNS[rng.integers(len(PATTERNS))]
    period = rng.uniform(80, 160) if kind == "gradient" else rng.uniform(9, 40)
    mix = pattern(kind, u + bend, v, period * unit, rng.uniform(0, 6.28))
    first = colour(rng, (0.0, 0.3), (0.3, 0.8))
    second = np.clip(first + rng.uniform(-0.14, 0.14, (3, 1, 1)).astype(np.float32), 0, 1)
    clouds = noise(rng, size, 3, 3) * np.float32(rng.uniform(0.02, 0.12))
    grey = noise(rng, size, 13, 1) * np.float32(rng.uniform(0, 0.10))
    grey += noise(rng, size, 49, 1) * np.float32(rng.uniform(0, 0.08))
    return first + (second - first) * mix + clouds + grey
