"""Two processes under torchrun train as one does, share what they store, and end together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_run

from gkd_fast.data.loader import EpochSampler

# Batch normalisation would see half a batch; the rest is normalised over all processes.
OPTIONS = tiny_run(
    "--log-steps 1 --checkpoint-steps 2 --optimizer sgd --lr 0.001 --freeze-norm --no-pyramid-norm", train=12, val=3
)

KINDS = ("faster_rcnn", "retinanet")


def train(processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    launcher = (
        [] if processes == 1 else ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    )
    command = [sys.executable, "-m", *launcher, "gkd_fast.train", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_training(folder: Path, expected: Path) -> None:
    own, whole = records(folder), records(expected)
    assert [(line["phase"], line.get("step")) for line in own] == [(line["phase"], line.get("step")) for line in whole]
    for line, reference in zip(own, whole, strict=True):
        assert line.keys() == reference.keys()
        for name, value in reference.items():
            if name.startswith(("loss", "gkd", "count", "images")) and name != "images_per_second":
                assert line[name] == pytest.approx(value, rel=2e-4, abs=1e-6), (line, name)
    trained = [path.relative_to(expected) for path in expected.glob("*/model.pt")]
    assert {path.parent.name for path in trained} >= {"student", "distilled"}
    for path in trained:
        found, model = (torch.load(run / path, weights_only=True)["model"] for run in (folder, expected))
        for key, value in model.items():
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    result = train(1, *OPTIONS, "--output", folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.parametrize("sharding", [["--sharding", "ddp"], ["--sharding", "fsdp", "--shard-teacher"]])
def test_two_processes_train_as_one(alone: Path, tmp_path: Path, sharding: list[str]) -> None:
    result = train(2, *OPTIONS, *sharding, "--output", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert_same_training(tmp_path / "run", alone)
    assert result.stdout.count("student distilled") == 1
    summaries = [json.loads((run / "summary.json").read_text()) for run in (tmp_path / "run", alone)]
    assert summaries[0]["distilled"]["AP"] == pytest.approx(summaries[1]["distilled"]["AP"], abs=0.02)


def test_candidates_and_gradient_norms_of_all_processes(alone: Path, tmp_path: Path) -> None:
    options = [*OPTIONS, "--prototypes-from", "harvest", "--auto-balance", "--grad-norm-steps", "2"]
    options += ["--teacher-checkpoint", alone / "teacher/model.pt"]
    for processes in (1, 2):
        result = train(processes, *options, "--output", tmp_path / str(processes))
        assert result.returncode == 0, result.stderr
    assert_same_training(tmp_path / "2", tmp_path / "1")
    banks = [torch.load(tmp_path / name / "distilled/prototypes.pt", weights_only=True) for name in "12"]
    assert torch.equal(banks[0]["image_ids"], banks[1]["image_ids"])
    torch.testing.assert_close(banks[1]["student"], banks[0]["student"], rtol=1e-3, atol=1e-5)
    norms = [[line for line in records(tmp_path / name) if line.get("event") == "gradient_norms"] for name in "12"]
    assert [(line["phase"], line["step"]) for line in norms[0]] == [
        (phase, step) for phase in ("student", "distilled") for step in (1, 3, 5)
    ]
    for own, whole in zip(norms[1], norms[0], strict=True):
        assert own.keys() == whole.keys()
        for name in own.keys() - {"phase", "event", "epoch", "step"}:
            assert own[name] == pytest.approx(whole[name], rel=2e-3, abs=1e-6), name


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_a_state_is_for_any_number_of_processes(alone: Path, tmp_path: Path, first: int, then: int) -> None:
    folder = tmp_path / "run"
    sharded = ["--sharding", "fsdp"]
    stopped = train(first, *OPTIONS, *sharded, "--output", folder, "--teacher-checkpoint", alone / "teacher/model.pt")
    assert stopped.returncode == 0, stopped.stderr
    for name in ("result.json", "model.pt", "checkpoints/step-00000006"):
        path = folder / "distilled" / name
        path.rename(folder / f"former-{path.name}")
    lines = [line for line in records(folder) if not (line["phase"] == "distilled" and line.get("step", 0) > 4)]
    result = train(then, "--resume", "--output", folder)
    assert result.returncode == 0, result.stderr
    steps = [line["step"] for line in records(folder) if line["phase"] == "distilled" and "step" in line]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert records(folder)[: len(lines)] == lines
    found, expected = (torch.load(run / "distilled/model.pt", weights_only=True)["model"] for run in (folder, alone))
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-5)


def test_the_teacher_is_halved(tmp_path: Path) -> None:
    script = tmp_path / "halves.py"
    script.write_text(
        "import sys, torch, torch.distributed as dist\n"
        "from gkd_fast.detectors import DetectorSpec, adapt, build_detector\n"
        "from gkd_fast.training.distributed import shard_teacher\n"
        "dist.init_process_group('gloo')\n"
        "for kind in ('faster_rcnn', 'retinanet'):\n"
        "    torch.manual_seed(0)\n"
        "    teacher = build_detector(DetectorSpec(detector=kind, backbone='resnet18', channels=32, head=64), 3)\n"
        "    teacher.eval().requires_grad_(False)\n"
        "    images = [torch.rand(3, 64, 64)]\n"
        "    before = adapt(teacher).pyramid(adapt(teacher).batch([torch.ones(3, 64, 64, dtype=torch.uint8)]))\n"
        "    whole = sum(p.numel() for p in teacher.parameters())\n"
        "    shard_teacher(teacher, torch.device('cpu'))\n"
        "    after = adapt(teacher).pyramid(adapt(teacher).batch([torch.ones(3, 64, 64, dtype=torch.uint8)]))\n"
        "    assert all(torch.equal(before[name], after[name]) for name in before)\n"
        "    teacher(images)\n"
        "    own = sum(p.to_local().untyped_storage().nbytes() // 4 for p in teacher.parameters())\n"
        "    open(f'{sys.argv[1]}/{kind}{dist.get_rank()}', 'w').write(str(own / whole))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += [str(script), str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert result.returncode == 0, result.stderr
    fractions = [float((tmp_path / f"{kind}{rank}").read_text()) for kind in KINDS for rank in (0, 1)]
    assert all(0.49 < fraction < 0.52 for fraction in fractions), fractions


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    result = train(2, *OPTIONS, "--batch-size", 3, "--output", tmp_path / "run")
    assert result.returncode != 0
    assert result.stderr.count("error: --batch-size: expected a multiple of the 2 processes, got 3") == 1
    assert "[rank" not in result.stderr  # the processes print no traceback; torchrun itself does


def test_the_shares_of_an_epoch_are_its_batches() -> None:
    samplers = [EpochSampler(14, seed=3, batch_size=4, share=share) for share in ((0, 1), (0, 2), (1, 2))]
    for sampler in samplers:
        sampler.set_epoch(1, start=4)
    whole, first, second = map(list, samplers)
    assert [*first[:2], *second[:2]] == [whole[0], whole[2], whole[1], whole[3]]
    assert len(first) == len(second) == 4
