"""``python -m bench.integrations``: AP of students that other libraries' trainers trained, with and without distilling.

A pair is a teacher and a student of one library. Every role is a process of its own and leaves a JSON file:

    python -m bench.integrations yolo teacher --data-root BCCD
    python -m bench.integrations yolo control --seed 0 --data-root BCCD
    python -m bench.integrations yolo distilled --seed 0 --data-root BCCD
    python -m bench.integrations yolo table

Data are a PASCAL VOC folder with the splits trainval and test; AP is COCO's, of original pixels, for both libraries.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from bench.integrations import rtdetr, yolo
from gkd_fast.data import open_dataset
from gkd_fast.evaluation import evaluate_coco
from gkd_fast.study.statistics import Interval, mean_interval

_PAIRS = {"yolo": yolo, "rtdetr": rtdetr}
_FIGURES = ("AP", "AP50", "AP75")


def main() -> None:
    """Train and evaluate one network, or print the table of all."""
    options = _parser().parse_args()
    folder = options.output / options.pair
    if options.role == "table":
        print(table(folder))
        return
    torch.set_num_threads(options.threads)
    name = options.role if options.role == "teacher" else f"{options.role}-{options.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    train, test = (open_dataset(options.data_root, split) for split in ("trainval", "test"))
    start = time.perf_counter()
    detections = _PAIRS[options.pair].run(options.role, options.seed, train, test, folder, name, options.method)
    seconds = time.perf_counter() - start
    found = evaluate_coco(test.ground_truth(), detections)
    result = {"role": options.role, "seed": options.seed, "seconds": round(seconds), **found}
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", choices=_PAIRS)
    parser.add_argument("role", choices=("teacher", "control", "distilled", "table"))
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and augmentation")
    parser.add_argument("--data-root", type=Path, help="PASCAL VOC folder")
    parser.add_argument("--output", type=Path, default=Path("runs/integrations"), help="gets one folder a pair")
    parser.add_argument("--method", default="gkd", help="what the distilled student learns by")
    parser.add_argument("--threads", type=int, default=1, help="of this process")
    return parser


def table(folder: Path) -> str:
    """The results of a folder as Markdown: mean and 95 % interval, and the differences of the same seed."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    by_role = {role: [r for r in results if r["role"] == role] for role in ("teacher", "control", "distilled")}
    lines = ["| | " + " | ".join(_FIGURES) + " | seeds |", "|---|" + "---:|" * (len(_FIGURES) + 1)]
    for role, found in by_role.items():
        if found:
            cells = [_cell(mean_interval([100 * r[figure] for r in found])) for figure in _FIGURES]
            lines.append(f"| {role} | " + " | ".join(cells) + f" | {len(found)} |")
    control = {r["seed"]: r for r in by_role["control"]}
    pairs = [(r, control[r["seed"]]) for r in by_role["distilled"] if r["seed"] in control]
    if pairs:
        differences = {figure: [100 * (own[figure] - base[figure]) for own, base in pairs] for figure in _FIGURES}
        cells = [_cell(mean_interval(values), sign="+") for values in differences.values()]
        lines.append("| difference, seed by seed | " + " | ".join(cells) + f" | {len(pairs)} |")
        lines.append(f"\nAP, seed by seed: {', '.join(f'{value:+.1f}' for value in differences['AP'])}")
    return "\n".join(lines)


def _cell(interval: Interval, sign: str = "") -> str:
    mean = f"{interval.mean:{sign}.1f}"
    return mean if interval.half_width is None else f"{mean} ± {interval.half_width:.1f}"


if __name__ == "__main__":
    main()
