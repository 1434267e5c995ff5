"""Draws the method's pictures from instances of two dimensions: ``python docs/pictures/method.py``.

Every mark is what the package computes: the dense instances, the picks of the matching pursuit, the robust weights.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from gkd_fast import ops
from gkd_fast.methods import Settings
from gkd_fast.methods.gkd.prototypes import dense_instances

PICKS = 2  # as many as the space has dimensions: more would explain nothing more
NOISY = 4  # instances whose features differ between the spaces
SIDE, MARGIN, GAP = 300, 20, 40
FAINT, DARK, RED, BLUE = "#b9c0c8", "#2f3b48", "#c8402f", "#2f6fb0"


def spaces() -> tuple[Tensor, Tensor]:
    """Embeddings [n,2] of one class's instances in the student's and in the teacher's space."""
    generator = torch.Generator().manual_seed(4)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    kinds = torch.arange(24) % PICKS
    lengths = 0.75 + 0.1 * noise(24)
    angles = torch.tensor([0.25, 1.25])[kinds] + 0.04 * noise(24)
    other = torch.tensor([0.45, 1.0])[kinds] + 0.04 * noise(24)
    other[:NOISY] += torch.tensor([-0.33, 0.36, -0.25, 0.28])
    return tuple(torch.stack([turn.cos(), turn.sin()], 1) * lengths[:, None] for turn in (angles, other))


def picks(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Which instances are dense in both spaces [n], and which of them are picked [PICKS]."""
    one, two = (F.normalize(space, dim=1) for space in (student, teacher))
    dense = dense_instances(one, two, Settings(prototypes=PICKS))
    picked = ops.matching_pursuit(one[None], two[None], torch.tensor([len(one)]), picks=PICKS, candidates=dense[None])
    return dense, picked[0]


def weights(student: Tensor, teacher: Tensor, picked: Tensor) -> Tensor:
    """The robust weights [n]."""
    labels, offsets = torch.zeros(len(student), dtype=torch.int64), torch.tensor([0, len(picked)])
    found = ops.pairwise_discrepancy(
        student[None], teacher[None], student[None, picked], teacher[None, picked], labels, offsets
    )
    return found[1][0]


def place(point: Tensor, panel: int) -> tuple[float, float]:
    """Pixels of a point of 0..1 in one of the two panels."""
    x, y = point.tolist()
    return round(MARGIN + panel * (SIDE + GAP) + x * SIDE, 1), round(MARGIN + 20 + (1 - y) * SIDE, 1)


def frame(body: list[str]) -> str:
    """Both panels with their titles and axes."""
    width, height = 2 * (MARGIN + SIDE) + GAP, SIDE + 2 * MARGIN + 20
    size = f"0 0 {width} {height}"
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" font-family="sans-serif" font-size="13">']
    parts.append(f'<rect width="{width}" height="{height}" fill="white"/>')
    for panel, title in enumerate(("student's feature space", "teacher's feature space")):
        left, bottom = place(torch.zeros(2), panel)
        parts.append(f'<text x="{left}" y="{MARGIN}" fill="{DARK}">{title}</text>')
        parts.append(f'<path d="M{left} {bottom - SIDE}V{bottom}H{left + SIDE}" fill="none" stroke="{FAINT}"/>')
    return "\n".join([*parts, *body, "</svg>"]) + "\n"


def prototypes_picture(student: Tensor, teacher: Tensor) -> str:
    """Instances, those that are dense in both spaces, and the picks with their numbers."""
    dense, picked = picks(student, teacher)
    body = []
    for panel, space in enumerate((student, teacher)):
        left, bottom = place(torch.zeros(2), panel)
        for number, row in enumerate(picked.tolist(), start=1):
            x, y = place(space[row], panel)
            body.append(f'<line x1="{left}" y1="{bottom}" x2="{x}" y2="{y}" stroke="{RED}" stroke-width="1.5"/>')
            body.append(f'<text x="{x + 9}" y="{y - 6}" fill="{RED}">{number}</text>')
        for row, point in enumerate(space):
            x, y = place(point, panel)
            colour = RED if row in picked.tolist() else DARK if dense[row] else FAINT
            body.append(f'<circle cx="{x}" cy="{y}" r="{5 if colour == RED else 3.5}" fill="{colour}"/>')
    return frame(body)


def weights_picture(student: Tensor, teacher: Tensor) -> str:
    """Every instance between its nearest prototypes, and what it weighs."""
    _, picked = picks(student, teacher)
    omega = weights(student, teacher, picked)
    least = omega.argsort()[:NOISY].tolist()
    body = []
    for panel, space in enumerate((student, teacher)):
        left, bottom = place(torch.zeros(2), panel)
        for row in picked.tolist():
            x, y = place(space[row], panel)
            body.append(f'<line x1="{left}" y1="{bottom}" x2="{x}" y2="{y}" stroke="{RED}" stroke-width="1.5"/>')
        for row, point in enumerate(space):
            x, y = place(point, panel)
            colour = RED if row in picked.tolist() else BLUE if row in least else FAINT
            body.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>')
            if row in least:
                cosines = F.cosine_similarity(space[row][None], space[picked])
                angle = math.degrees(math.acos(min(1.0, float(cosines.max()))))
                text = f"{angle:.0f}°, ω = {omega[row]:.2f}"
                body.append(f'<text x="{x + 8}" y="{y + 4 - 16 * (least.index(row) % 2)}" fill="{DARK}">{text}</text>')
    return frame(body)


def main() -> None:
    """Write both pictures beside this file."""
    student, teacher = spaces()
    folder = Path(__file__).parent
    (folder / "prototypes.svg").write_text(prototypes_picture(student, teacher), encoding="utf-8")
    (folder / "omega.svg").write_text(weights_picture(student, teacher), encoding="utf-8")


if __name__ == "__main__":
    main()
