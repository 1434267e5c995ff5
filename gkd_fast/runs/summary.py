"""The table at the end of a run."""

from __future__ import annotations

import shlex
from typing import Any

_ROWS = {"teacher": "teacher", "student": "student alone", "distilled": "student distilled"}


def summary_table(summary: dict[str, Any]) -> str:
    """A markdown table of AP and throughput, and of the robust weights where they were measured.

    Args:
        summary: content of ``summary.json``.
    """
    voc = [key for key in ("mAP_2007", "mAP_2010") if key in summary["student"]]
    columns = ["AP", "AP50", "AP75", *voc]
    lines = [_line(["model", *columns, "train img/s"]), _line(["---"] + ["---:"] * (len(columns) + 1))]
    for key, title in _ROWS.items():
        result = summary[key]
        rate = f"{result['images_per_second']:.1f}" if "images_per_second" in result else "-"
        lines.append(_line([title, *(f"{100 * result[name]:.1f}" for name in columns), rate]))
    gain = summary["distilled"]["AP"] - summary["student"]["AP"]
    lines += ["", f"Distilling against the student alone, at equal steps: {100 * gain:+.1f} AP."]
    if "robust_weights" in summary:
        lines += ["", _line(["instances", "number", "mean robust weight"]), _line(["---", "---:", "---:"])]
        lines += [
            _line([name, str(row["instances"]), f"{row['weight']:.3f}"])
            for name, row in summary["robust_weights"].items()
        ]
    return "\n".join(lines)


def next_steps(folder: str) -> str:
    """The commands for a finished run, in one line."""
    student = f"--checkpoint {shlex.quote(f'{folder}/distilled/model.pt')}"
    commands = (f"report {shlex.quote(folder)}", f"predict {student} IMAGES", f"export {student} --output student.pth")
    return "next: " + "; ".join(f"gkd-fast {command}" for command in commands)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
