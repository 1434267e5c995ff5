"""Every Triton kernel, in every form it can be launched in, for every architecture, held to its checked-in budget."""

import json
from dataclasses import asdict, replace
from importlib import import_module

import pytest

from bench import gpu_report
from bench.gpu.budget import load_budgets, make_budget, write_budgets
from bench.gpu.compiled import ARCHITECTURES, compile_all, list_jobs, toolchain
from bench.gpu.cubin import Facts
from bench.gpu.cuda_library import CudaUnavailableError
from bench.gpu.host import HostCost
from bench.gpu.host_budget import load_host_budgets, write_host_budgets
from bench.gpu.judge import judge
from bench.gpu.mock import MockUnavailableError


@pytest.fixture(scope="module")
def kernels():
    return compile_all(list_jobs())


def test_triton_kernels_keep_their_budgets(kernels):
    verdicts, _ = judge(kernels, toolchain(), *load_budgets("triton"))
    broken = {key: what for key, what in verdicts.items() if what}
    assert not broken, "python -m bench.gpu_report shows all:\n" + "\n".join(f"{k}: {v}" for k, v in broken.items())


def test_forms_have_names_of_their_own(kernels):
    assert len({(k.kernel, k.form, k.facts.arch) for k in kernels}) == len(kernels)
    assert {k.facts.arch for k in kernels} == set(ARCHITECTURES)


def test_no_number_makes_another_form():
    for job in list_jobs((80,)):
        kernel = import_module(job.module).KERNELS[job.kernel].fn
        numbers = [p for p in kernel.params if not p.is_constexpr and not p.name.endswith("_ptr")]
        assert numbers
        assert all(p.do_not_specialize for p in numbers), job


@pytest.fixture
def report(monkeypatch, tmp_path):
    """Runs the report on one kernel whose budget allows 64 registers; the CUDA part has no compiler."""
    facts = Facts("square", 80, 64, 0, 0, 128, *[0] * 9)
    compiled = gpu_report.Compiled("square", "fp32", 0, facts)

    def refuse(architectures):
        raise CudaUnavailableError("nvcc not found on the PATH")

    write_budgets("triton", toolchain(), {("square", "fp32", 80): make_budget(facts, 0)}, {}, tmp_path)
    monkeypatch.setattr(gpu_report, "load_budgets", lambda name: load_budgets(name, tmp_path))
    monkeypatch.setattr(gpu_report, "compile_cuda", refuse)

    def run(**changes):
        changed = replace(compiled, facts=replace(facts, **changes))
        monkeypatch.setattr(gpu_report, "compile_all", lambda jobs: [changed])
        return gpu_report.main([])

    return run


def test_the_report_tells_what_it_did_not_check(report, capsys):
    assert report() == 0
    printed = capsys.readouterr().out
    assert "CUDA C++ kernels: NOT CHECKED, nvcc not found on the PATH" in printed
    assert "| square | fp32 | 80 | 4 | 64 | 0 | 0 | 50% |" in printed
    assert "ESTIMATE" in printed
    assert "| masked_imitation | backward | bfloat16 |" in printed
    assert printed.rstrip().endswith("all budgets kept")


def test_a_broken_budget_fails_the_report(report, capsys):
    assert report(registers=65) == 1
    assert "registers: at most 64, got 65" in capsys.readouterr().out
    assert report(spills=1) == 1


def test_least_times_are_those_of_a_hand_count():
    rows = [line.split("|") for line in gpu_report.roofline_table().splitlines() if line.startswith("| masked")]
    cells = {(row[2].strip(), row[3].strip()): [cell.strip() for cell in row] for row in rows}
    # Levels of 200x336 to 13x21 cells, 2 images, 256 channels.
    values = 2 * 256 * (200 * 336 + 100 * 168 + 50 * 84 + 25 * 42 + 13 * 21)
    assert cells["forward", "float32"][4] == f"{2 * 4 * values / 1e6:.1f}"
    assert cells["backward", "bfloat16"][4] == f"{3 * 2 * values / 1e6:.1f}"
    assert cells["forward", "float32"][7] == f"{8 * values / 2.039e12 * 1e6:.1f} (memory)"


def test_the_host_report_without_a_mock_ends_in_one_line(monkeypatch, capsys):
    def refuse():
        raise MockUnavailableError("needs gcc on the PATH")

    monkeypatch.setattr(gpu_report, "measure_host", refuse)
    assert gpu_report.main(["--host"]) == 2
    assert capsys.readouterr().err == "bench.gpu_report: --host needs gcc on the PATH\n"


def test_the_host_report_has_a_row_a_case(monkeypatch, capsys, tmp_path):
    cost = HostCost("square", "float32", launches=3, copies=1, transfers=0, waits=0, host_us=12.5, forward_us=5.0)
    path = write_host_budgets([cost], tmp_path / "host.json")
    monkeypatch.setattr(gpu_report, "load_host_budgets", lambda: load_host_budgets(path))
    monkeypatch.setattr(gpu_report, "measure_host", lambda: [cost])
    assert gpu_report.main(["--host", "--json", str(tmp_path / "rows.json")]) == 0
    assert json.loads((tmp_path / "rows.json").read_text()) == [asdict(cost)]
    monkeypatch.setattr(gpu_report, "measure_host", lambda: [replace(cost, copies=2)])
    assert gpu_report.main(["--host"]) == 1
    assert "square, float32: copies: 1, got 2" in capsys.readouterr().out
