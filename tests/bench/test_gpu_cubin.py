"""Facts read from machine code that Triton compiled here for GPUs that need not be here."""

from dataclasses import replace

import planted_gpu_kernels as planted
import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.gpu.budget import broken, load_budgets, make_budget, not_launchable, write_budgets
from bench.gpu.compiled import Compiled
from bench.gpu.cubin import read_facts
from bench.gpu.judge import judge
from bench.gpu_report import as_table

ARCHITECTURES = (80, 90, 100)


@pytest.fixture(scope="module")
def facts_of(tmp_path_factory):
    """Compiles a planted kernel with pointers that are divisible by 16."""
    found = {}

    def compile_kernel(kernel, arch, types, warps=4, **constants):
        key = kernel.__name__, arch, types, warps, *constants.items()
        if key not in found:
            signature = dict(zip(kernel.arg_names, (*types, *["constexpr"] * len(constants)), strict=True))
            aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types) if kind != "fp32"}
            source = ASTSource(kernel, signature, constants, aligned)
            compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps})
            path = tmp_path_factory.mktemp("cubin") / "kernel.cubin"
            path.write_bytes(compiled.asm["cubin"])
            (facts,) = read_facts(path)
            found[key] = facts
        return found[key]

    return compile_kernel


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_wide_accesses_are_seen(facts_of, arch):
    facts = facts_of(planted.scale, arch, ("*fp32", "*fp32", "fp32"), BLOCK=1024)
    assert (facts.kernel, facts.arch, facts.threads) == ("scale", arch, 128)
    assert facts.loads128 == facts.loads == facts.stores128 == facts.stores == 2
    assert 0 < facts.registers < 64
    assert facts.spills == facts.atomics == facts.swaps == facts.products == facts.shared == 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_narrow_accesses_are_seen(facts_of, arch):
    facts = facts_of(planted.scale_columns, arch, ("*fp32", "*fp32", "fp32"), BLOCK=1024)
    assert facts.loads > 0
    assert facts.loads128 == 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_products_run_on_tensor_cores(facts_of, arch):
    types = "*bf16", "*bf16", "*fp32"
    assert facts_of(planted.product, arch, types, BLOCK=64, PRECISION="ieee").products > 0
    assert facts_of(planted.product, arch, ("*fp32",) * 3, BLOCK=64, PRECISION="ieee").products == 0
    assert facts_of(planted.product, arch, ("*fp32",) * 3, BLOCK=64, PRECISION="tf32").products > 0


def test_spills_are_seen_and_break_any_budget(facts_of):
    facts = facts_of(planted.product, 80, ("*bf16", "*bf16", "*fp32"), BLOCK=128, PRECISION="ieee")
    assert facts.spills > 0
    assert facts.stack > 0
    assert any("spills" in what for what in broken(facts, 0, make_budget(facts, 0)))


def test_atomics_are_seen(facts_of):
    assert facts_of(planted.add_up, 80, ("*fp32", "*fp32"), BLOCK=128).atomics > 0
    assert facts_of(planted.swap_in, 80, ("*i32",)).swaps == 1


@pytest.fixture
def kept(facts_of):
    facts = facts_of(planted.scale, 80, ("*fp32", "*fp32", "fp32"), BLOCK=1024)
    return Compiled("scale", "fp32; BLOCK=1024", facts.shared, facts)


def judged(kernels, budget, made_with="here"):
    budgets = {"scale": {"fp32; BLOCK=1024": {"80": budget}}}
    return judge(kernels, "here", made_with, budgets)


def test_a_kept_budget(kept):
    verdicts, remarks = judged([kept], make_budget(kept.facts, kept.shared))
    assert verdicts == {("scale", "fp32; BLOCK=1024", 80): []}
    assert remarks == []
    row = as_table([kept], verdicts).splitlines()[-1]
    assert row.startswith("| scale | fp32; BLOCK=1024 | 80 | 4 |")
    assert "| 100% | 2 of 2 | 2 of 2 |" in row
    assert row.endswith("| kept |")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"registers": 200}, "registers: at most"),
        ({"swaps": 1}, "swaps: at most 0, got 1"),
        ({"loads128": 0}, "loads128: at least 1, got 0"),
        ({"stores128": 0}, "stores128: at least 1, got 0"),
        ({"spills": 3}, "spills: at most 0, got 3"),
        ({"threads": 0}, "expected launch bounds"),
        ({"threads": 1024, "registers": 72}, "do not fit"),
    ],
)
def test_a_broken_budget_is_named(kept, change, named):
    worse = replace(kept, facts=replace(kept.facts, **change))
    ((_, found),) = judged([worse], make_budget(kept.facts, kept.shared))[0].items()
    assert any(named in what for what in found), found
    assert named in as_table([worse], judged([worse], make_budget(kept.facts, kept.shared))[0])


def test_too_much_shared_memory_is_named(kept):
    worse = replace(kept, shared=kept.shared + 1)
    ((_, found),) = judged([worse], make_budget(kept.facts, kept.shared))[0].items()
    assert found == ["shared: at most 0, got 1"]
    assert not_launchable(kept.facts, 164 << 10) != []


def test_missing_and_stale_budgets_are_named(kept):
    other = replace(kept, form="fp32; BLOCK=2048")
    verdicts, _ = judged([other], make_budget(kept.facts, kept.shared))
    assert verdicts["scale", other.form, 80] == ["no budget"]
    assert verdicts["scale", kept.form, 80] == ["budget without a kernel"]


def test_another_compiler_is_held_to_spills_only(kept):
    budget = make_budget(kept.facts, kept.shared)
    more = replace(kept, facts=replace(kept.facts, registers=100))
    verdicts, remarks = judged([more], budget, made_with="an older one")
    assert verdicts["scale", kept.form, 80] == []
    assert remarks == ["budgets of an older one, here here: only spills and launches are held"]
    spilling = replace(kept, facts=replace(kept.facts, spills=1))
    assert judged([spilling], budget, made_with="an older one")[0]["scale", kept.form, 80] != []


def test_budgets_survive_the_file(kept, tmp_path):
    budget = make_budget(kept.facts, kept.shared)
    write_budgets("tiny", "here", {("scale", kept.form, 80): budget, ("scale", kept.form, 90): budget}, {}, tmp_path)
    made_with, budgets = load_budgets("tiny", tmp_path)
    assert made_with == "here"
    assert budgets == {"scale": {kept.form: {"80": budget, "90": budget}}}
    write_budgets("tiny", "here", {("other", "", 80): budget}, budgets, tmp_path)
    assert load_budgets("tiny", tmp_path)[1] == budgets | {"other": {"": {"80": budget}}}
    with pytest.raises(ValueError, match="write-budgets"):
        load_budgets("missing", tmp_path)


def test_a_file_without_gpu_code(tmp_path):
    path = tmp_path / "empty.o"
    path.write_bytes(b"no ELF")
    with pytest.raises((ValueError, RuntimeError), match=r"empty\.o"):
        read_facts(path)
