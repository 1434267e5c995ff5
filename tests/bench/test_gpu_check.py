"""What the check on a GPU decides, writes and answers, seen without one."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from bench import gpu_check
from bench.gpu import check_parts
from bench.gpu.check_parts import Correctness, Outcome, Times
from bench.gpu.steps import StepCost, is_launch
from bench.gpu.times import time_case
from bench.measuring import machine
from bench.operators import measure
from bench.operators.cases import CASES


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_and_exit_code_2(capsys, tmp_path):
    assert gpu_check.main(["--out", str(tmp_path / "results")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "expected a GPU" in captured.err
    assert not (tmp_path / "results").exists()


STEP = StepCost("faster_rcnn", "a", "full", 10.0, 1.0, launches=900, waits=7, peak_mb=2000.0)


@pytest.fixture
def record(tiny, monkeypatch):
    """What the timing process says of one case, measured on the CPU."""
    monkeypatch.setattr(measure, "ROUNDS_S", 0.0)
    monkeypatch.setattr(measure, "TURN_S", 0.0)
    monkeypatch.setattr(machine, "COPY_BYTES", 1 << 20)
    device = torch.device("cpu")
    return json.loads(json.dumps(time_case("box_mean_pool", tiny, torch.float32, device, compiled=False)))


def test_a_timed_case(record):
    assert {row["impl"] for row in record["rows"]} == {"fused", "reference"}
    assert record["rates"]["copy"] > 0
    assert record["graph_reason"] == "no GPU"


class Child:
    """Stands in for the timing process: cases that end well, and the ones that end it otherwise."""

    def __init__(self, *, crash=(), hang=(), seconds=1.0):
        self.crash, self.hang, self.seconds = crash, hang, seconds
        self.now = 0.0
        self.calls = []

    def clock(self):
        return self.now

    def __call__(self, arguments, seconds):
        if "--loop" in arguments:
            return self.steps(arguments)
        ops = arguments[arguments.index("--op") + 1 : arguments.index("--dtype")]
        dtype = arguments[arguments.index("--dtype") + 1]
        self.calls.append((dtype, ops, "--compiled" in arguments))
        end, lines = self.now + seconds, []
        for op in ops:
            if (op, dtype) in self.crash:
                return Outcome(1, "\n".join(lines), "Traceback\nRuntimeError: illegal memory access\n")
            if (op, dtype) in self.hang:
                self.now = end
                return Outcome(None, "\n".join(lines), "")
            if self.now > end:
                break
            self.now += self.seconds
            lines.append(json.dumps({"op": op, "dtype": dtype}))
        return Outcome(0, "warming up\n" + "\n".join(lines), "")

    def steps(self, arguments):
        loops = arguments[arguments.index("--loop") + 1 : arguments.index("--seconds")]
        loops = [loop for loop in loops if loop != "--quick"]
        self.calls.append(loops)
        lines = []
        for loop in loops:
            if loop in self.crash:
                return Outcome(1, "\n".join(lines), "torch.OutOfMemoryError: CUDA out of memory\n")
            self.now += self.seconds
            lines.append(json.dumps({"loop": loop}))
        return Outcome(0, "\n".join(lines), "")


def test_what_compiles_is_measured_last_and_a_crash_costs_one_loop():
    child = Child(crash=["faster_rcnn:e"])
    steps = check_parts.measure_steps(1000.0, child, child.clock)
    assert [record["loop"] for record in steps.records] == [
        *(f"{detector}:{variant}" for variant in "abc" for detector in ("faster_rcnn", "retinanet")),
        "retinanet:e",
    ]
    reason = "exit code 1: torch.OutOfMemoryError: CUDA out of memory"
    assert steps.missing == {"faster_rcnn, ours, --amp --compile": reason}
    assert child.calls[1] == ["retinanet:e"]


def test_quick_compiles_nothing():
    child = Child()
    steps = check_parts.measure_steps(1000.0, child, child.clock, quick=True)
    assert {record["loop"][-1] for record in steps.records} == {"a", "b", "c"}
    child = Child()
    times = check_parts.time_operators(1000.0, child, child.clock, quick=True)
    assert [record["op"] for record in times.records] == list(CASES)
    assert [compiled for _, _, compiled in child.calls] == [False]


def test_the_profilers_calls_that_launch():
    calls = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
    assert all(map(is_launch, calls))
    assert not any(map(is_launch, ("cudaMemcpyAsync", "aten::add", "cudaStreamSynchronize", "cudaMalloc")))


def test_all_operators_are_timed_in_both_dtypes():
    child = Child()
    times = check_parts.time_operators(1000.0, child, child.clock)
    assert [(r["op"], r["dtype"]) for r in times.records] == [(op, d) for d in ("float32", "bfloat16") for op in CASES]
    assert times.missing == {}
    assert [compiled for _, _, compiled in child.calls] == [True, False]


def test_a_crash_costs_one_case():
    child = Child(crash=[("multiscale_roi_align", "float32")])
    times = check_parts.time_operators(1000.0, child, child.clock)
    assert len(times.records) == 2 * len(CASES) - 1
    assert times.missing == {"multiscale_roi_align, float32": "exit code 1: RuntimeError: illegal memory access"}


def test_a_case_that_hangs_uses_up_the_time():
    child = Child(hang=[("masked_imitation", "float32")])
    times = check_parts.time_operators(100.0, child, child.clock)
    assert times.missing["masked_imitation, float32"] == "stopped, out of time"
    assert times.missing["matching_pursuit, float32"] == "not reached, out of time"
    assert times.missing["box_mean_pool, bfloat16"] == "not reached, out of time"
    assert len(times.records) + len(times.missing) == 2 * len(CASES)


def test_no_case_is_begun_after_the_end():
    child = Child(seconds=30.0)
    times = check_parts.time_operators(100.0, child, child.clock)
    assert child.now <= 100.0 + 30.0
    assert len(times.records) + len(times.missing) == 2 * len(CASES)
    assert set(times.missing.values()) == {"not reached, out of time"}


def test_a_process_is_stopped_and_its_output_kept():
    outcome = check_parts.run_python(["-c", "import time; print('{}', flush=True); time.sleep(60)"], 1.0)
    assert outcome.code is None
    assert outcome.out == "{}\n"
    failed = check_parts.run_python(["-c", "raise SystemExit('bad luck')"], 60.0)
    assert failed.reason == "exit code 1: bad luck"


def test_the_tests_report_is_read(tmp_path):
    def fake(arguments, seconds):
        (path,) = (a.removeprefix("--junitxml=") for a in arguments if a.startswith("--junitxml="))
        with open(path, "w") as file:
            file.write(
                '<testsuites><testsuite><testcase name="a"/><testcase name="b"><skipped/></testcase>'
                '<testcase name="c"><failure message="wrong by 3&#10;more"/></testcase>'
                '<testcase name="d"><error message="no module"/></testcase></testsuite></testsuites>'
            )
        return Outcome(1, "", "")

    tests = check_parts.run_tests(10.0, tmp_path, fake)
    assert tests == Correctness(passed=1, skipped=1, failures=["c: wrong by 3", "d: no module"])


def test_tests_that_do_not_end_are_a_failure(tmp_path):
    tests = check_parts.run_tests(10.0, tmp_path, lambda *_: Outcome(None, "", ""))
    assert tests.failures == ["pytest tests/gpu: stopped, out of time"]


def test_backends_are_asked_in_a_process_of_their_own():
    assert check_parts.build(10.0, lambda *_: Outcome(0, 'compiling\n{"cuda": "available"}\n', "")) == {
        "cuda": "available"
    }
    assert "exit code 3" in check_parts.build(10.0, lambda *_: Outcome(3, "", ""))["cuda"]


def test_troubles_are_named_and_decide_the_exit_code(record):
    good = {"cuda": "available", "triton": "available"}
    steps = Times([asdict(STEP), asdict(replace(STEP, variant="c", waits=0))])
    assert gpu_check.list_troubles(good, Correctness(passed=3), steps, Times([record])) == []
    steps.records[1]["waits"] = 2
    steps.missing["retinanet, ours"] = "stopped, out of time"
    record["rows"][0] |= {"status": "differs", "reason": "gradient 0"}
    record["remarks"] = ["gkd_fast: the slower reference runs"]
    times = Times([record], {"masked_imitation, float32": "stopped, out of time"})
    troubles = gpu_check.list_troubles(good | {"cuda": "no nvcc"}, Correctness(failures=["x: wrong"]), steps, times)
    assert troubles == [
        "backend cuda: no nvcc",
        "test x: wrong",
        "tests: none passed",
        "retinanet, ours: stopped, out of time",
        "masked_imitation, float32: stopped, out of time",
        "faster_rcnn, ours, --amp: the host waits 2 times a step",
        "box_mean_pool: gkd_fast: the slower reference runs",
        "box_mean_pool, float32, fused: differs, gradient 0",
    ]


@pytest.mark.parametrize("troubles", [[], ["test x: wrong"]])
def test_both_files_are_written(troubles, record, monkeypatch, tmp_path, capsys):
    report = {
        "machine": ["GPU: toy"],
        "seconds": {"build": 1.0},
        "steps": [asdict(STEP), asdict(replace(STEP, variant="e", images_per_second=25.0, launches=4, waits=0))],
        "backends": {},
        "tests": {"passed": 3, "skipped": 1, "failures": []},
        "cases": [record, record | {"graph_ms": 1.5, "graph_fraction": 0.8, "graph_reason": ""}],
        "missing": {},
        "troubles": troubles,
    }
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Toy (80GB)")
    monkeypatch.setattr(gpu_check, "check", lambda end, quick: report)
    assert gpu_check.main(["--out", str(tmp_path / "new")]) == len(troubles)
    assert json.loads((tmp_path / "new" / "gpu-nvidia-toy-80gb.json").read_text()) == report
    text = (tmp_path / "new" / "gpu-nvidia-toy-80gb.md").read_text()
    assert "- Tests: 3 passed, 0 failed, 1 skipped" in text
    assert "| box_mean_pool | float32 | 1.500 | 80% |" in text
    assert "| faster_rcnn | e: ours, --amp --compile | full | 25.0 | 2.50 | 4 | 0 | 2000 | 1 |" in text
    assert "| box_mean_pool | tiny | float32 | reference |" in text
    assert ("TROUBLE: test x: wrong" in text) == bool(troubles)
    assert text in capsys.readouterr().out


def test_the_whole_plan_fits_into_eight_minutes():
    assert gpu_check.TOTAL_S < 8 * 60
    assert gpu_check.BUILD_S + gpu_check.TESTS_S < gpu_check.TOTAL_S - 60
