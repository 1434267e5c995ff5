"""Measurements as rows, and rows as a markdown table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bench.measuring.passes import Sample
from bench.operators.case import Case
from bench.operators.measure import Measurement
from bench.operators.work import tensor_bytes

BASELINES = ("reference", "compiled", "torchvision", "published_loop")
COLUMNS = (
    "operator",
    "shape",
    "dtype",
    "implementation",
    "forward ms",
    "forward+backward ms",
    "peak extra MB",
    "achieved",
    *(f"vs {name}" for name in BASELINES),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One implementation of one operator on one shape and dtype.

    Attributes:
        fwd_ms, fwd_bwd_ms: milliseconds; equal for an operator without gradient, None where it failed.
        peak_mb: memory at the peak beyond the inputs, in 1e6 bytes; None where it can't be read.
        ratios: baseline's forward+backward time over this one's; empty unless the result agrees.
        forward_ratios: likewise of the forward times.
        gradient_mb: the gradients it returns, in 1e6 bytes.
        rate, rate_unit, rate_fraction: compulsory work a second, and as a fraction of the copy rate (GB/s) or
            the matrix-product rate (GFLOP/s) of the same rounds; None unless the result agrees.
        status, reason: ok, differs (from the reference) or failed, and why.
        note: how the row was measured, where that is special.
        detail: the shape in words.
    """

    op: str
    shape: str
    dtype: str
    device: str
    threads: int
    impl: str
    fwd_ms: float | None
    fwd_bwd_ms: float | None
    peak_mb: float | None
    ratios: dict[str, float]
    forward_ratios: dict[str, float]
    gradient_mb: float
    rate: float | None
    rate_unit: str
    rate_fraction: float | None
    status: str
    reason: str
    note: str
    detail: str


def make_rows(
    case: Case,
    shape: str,
    dtype: torch.dtype,
    measurements: Sequence[Measurement],
    rates: Mapping[str, float],
) -> list[Row]:
    """Rows of one case, the fused implementation first.

    Args:
        case: what was measured.
        shape: its shape's name.
        dtype: of its inputs.
        measurements: one an implementation.
        rates: "copy" in bytes a second and "product" in operations a second.
    """
    sound = {m.name: m.time for m in measurements if m.status == "ok" and m.time is not None}
    rows = [_make_row(case, shape, dtype, m, sound, rates) for m in measurements]
    return sorted(rows, key=lambda row: row.impl != "fused")


def _make_row(
    case: Case,
    shape: str,
    dtype: torch.dtype,
    measurement: Measurement,
    sound: Mapping[str, Sample],
    rates: Mapping[str, float],
) -> Row:
    time, own = measurement.time, sound.get(measurement.name)
    others = {name: sound[name] for name in BASELINES if own and name in sound and name != measurement.name}
    floor = rates["copy" if case.work.unit == "B" else "product"]
    rate = case.work.amount / own.total if own else None
    return Row(
        op=case.op,
        shape=shape,
        dtype=str(dtype).removeprefix("torch."),
        device=str(case.device),
        threads=torch.get_num_threads(),
        impl=measurement.name,
        fwd_ms=time.forward * 1e3 if time else None,
        fwd_bwd_ms=time.total * 1e3 if time else None,
        peak_mb=None if measurement.peak_bytes is None else measurement.peak_bytes / 1e6,
        ratios={name: other.total / own.total for name, other in others.items() if own},
        forward_ratios={name: other.forward / own.forward for name, other in others.items() if own},
        gradient_mb=tensor_bytes(case.leaves) / 1e6,
        rate=rate / 1e9 if rate else None,
        rate_unit="GB/s" if case.work.unit == "B" else "GFLOP/s",
        rate_fraction=rate / floor if rate else None,
        status=measurement.status,
        reason=measurement.reason,
        note=measurement.note,
        detail=case.detail,
    )


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as plain objects."""
    return [asdict(row) for row in rows]


def as_markdown(rows: Sequence[Row], header: Sequence[str]) -> str:
    """Header lines, the table, and below it the shapes and notes in words."""
    cells = [COLUMNS, ["---"] * len(COLUMNS), *(_cells(row, rows) for row in rows)]
    table = ["| " + " | ".join(line) + " |" for line in cells]
    details = dict.fromkeys(f"- {row.op}, {row.shape}: {row.detail}" for row in rows)
    notes = [
        f"- {row.op}, {row.dtype}, {row.impl}: " + "; ".join(text for text in (row.note, _verdict(row)) if text)
        for row in rows
        if row.note or row.status != "ok"
    ]
    return "\n".join([*(f"- {line}" for line in header), "", *table, "", *details, *notes])


def _verdict(row: Row) -> str:
    return "" if row.status == "ok" else f"{row.status}: {row.reason}".replace("|", "/")


def _cells(row: Row, rows: Sequence[Row]) -> list[str]:
    neighbours = {r.impl: r for r in rows if (r.op, r.shape, r.dtype) == (row.op, row.shape, row.dtype)}
    achieved = row.status if row.rate is None else f"{_figure(row.rate)} {row.rate_unit}, {_fraction(row)}"
    peak = _figure(row.peak_mb)
    if row.peak_mb is not None and row.gradient_mb:
        peak += f" ({row.peak_mb / row.gradient_mb:.2f}x gradients)"
    ratios = [_ratio(row, neighbours.get(name)) for name in BASELINES]
    times = [_figure(row.fwd_ms), _figure(row.fwd_bwd_ms)]
    return [row.op, row.shape, row.dtype, row.impl, *times, peak, achieved, *ratios]


def _fraction(row: Row) -> str:
    return f"{row.rate_fraction:.0%} of {'copy' if row.rate_unit == 'GB/s' else 'product'}"


def _ratio(row: Row, baseline: Row | None) -> str:
    """A ratio stands only where both results agree with the reference."""
    if baseline is None or baseline.impl == row.impl:
        return "-"
    if row.status != "ok":
        return row.status
    return f"{_figure(row.ratios[baseline.impl])}x" if baseline.status == "ok" else baseline.status


def _figure(value: float | None) -> str:
    """Three significant digits, two below 1."""
    if value is None:
        return "-"
    return f"{value:.2g}" if value < 1 else f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"
