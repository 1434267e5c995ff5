"""The rows of `bench.step` as a markdown table."""

from __future__ import annotations

from collections.abc import Sequence

from bench.step.loops import VARIANTS
from bench.step.measure import Row
from bench.step.parts import PARTS


def table(rows: Sequence[Row]) -> list[str]:
    """A markdown table."""
    columns = ["detector", "loop", "images/s", "vs a", "GFLOP a step", "of product rate", "peak MB"]
    columns += [f"{part} ms" for part in PARTS]
    columns += ["distillation", "prototypes: pass", "harvest", "graphs"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * 2}{'---:|' * (len(columns) - 2)}"]
    for row in rows:
        cells = [row.detector, f"{row.variant}: {VARIANTS[row.variant].title}", f"{row.images_per_second:.2f}"]
        cells += ["-" if row.ratio is None else f"{row.ratio:.2f}"]
        fraction = row.operations / row.step_s / row.product_rate
        cells += [f"{row.operations / 1e9:.0f}", f"{100 * fraction:.0f} %"]
        cells += ["-" if row.peak_mb is None else f"{row.peak_mb:.0f}"]
        cells += [f"{1e3 * row.parts_s[part]:.0f}" if row.parts_s else "-" for part in PARTS]
        shares = row.distillation_share, row.pass_share, row.harvest_share
        cells += ["-" if share is None else f"{100 * share:.1f} %" for share in shares]
        cells += ["-" if row.compile_s is None else f"{row.graphs} in {row.compile_s:.0f} s"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
