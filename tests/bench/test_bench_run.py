import json

import pytest
import torch

from bench import run
from bench.measuring import machine
from bench.operators import measure
from bench.operators.cases import CASES
from bench.operators.shapes import COCO, make_boxes, make_generator


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--op", "box_max_pool"], "box_max_pool"),
        (["--shape", "huge"], "huge"),
        (["--dtype", "int8"], "int8"),
        (["--device", "tpu"], "tpu"),
        (["--json", "/no/such/folder/rows.json"], "/no/such/folder"),
        (["--speed"], "--speed"),
    ],
)
def test_a_wrong_option_is_answered_in_one_line(arguments, named, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run.main(arguments)
    assert exit_info.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert named in captured.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_answered_in_one_line(capsys):
    with pytest.raises(SystemExit) as exit_info:
        run.main(["--device", "cuda"])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_every_operator_is_measured(tiny, monkeypatch, capsys, tmp_path):
    # Compiling takes a minute; what is tested here is the way from the options to the table.
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(measure, "ROUNDS_S", 0.0)
    monkeypatch.setattr(measure, "TURN_S", 0.0)
    monkeypatch.setattr(machine, "COPY_BYTES", 1 << 20)
    monkeypatch.setitem(run.SHAPES, "small", tiny)
    file = tmp_path / "rows.json"
    assert run.main(["--shape", "small", "--op", *CASES, "--dtype", "float32", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert {row["op"] for row in rows} == set(CASES)
    for op in CASES:
        own = {row["impl"]: row for row in rows if row["op"] == op}
        assert own["reference"]["status"] == "ok"
        if op != "batched_nms":  # whose reference is no graph
            assert own["compiled"]["status"] == "ok"
            assert own["compiled"]["ratios"]["reference"] > 0
    table = capsys.readouterr().out
    assert table.startswith("- Machine: ")
    assert "threads" in table.splitlines()[0]
    assert "product" in table


def test_box_sizes_are_those_of_coco():
    boxes, image_index = make_boxes(COCO, 20000, make_generator())
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    side = (width * height).sqrt() * 480 / COCO.height
    assert (side < 32).double().mean().item() == pytest.approx(0.41, abs=0.02)
    assert (side < 96).double().mean().item() == pytest.approx(0.75, abs=0.02)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= torch.tensor([COCO.width, COCO.height]) + 1e-3).all()
    assert image_index.bincount().tolist() == [10000, 10000]
    assert torch.equal(image_index, image_index.sort().values)
