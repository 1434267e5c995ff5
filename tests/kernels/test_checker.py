"""Each planted bug is caught by its check, and a correct kernel by none."""

import planted
import pytest
import torch
from checker import CheckError

BLOCK = 16


def fails(kind, kernel, grid, *arguments, **options):
    with pytest.raises(CheckError) as caught:
        kernel[grid](*arguments, **options)
    assert caught.value.kind == kind, str(caught.value)
    return str(caught.value)


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(*shape, dtype=dtype)


def test_a_correct_kernel_passes(checker):
    source, target = torch.randn(37), torch.empty(37)
    planted.scale[(3,)](source, target, 37, BLOCK=BLOCK)
    assert torch.equal(target, 2 * source)
    assert checker.launches == ["scale"]


@pytest.mark.parametrize("kernel", ["no_mask_on_load", "no_mask_on_store"])
def test_a_missing_mask_is_out_of_bounds(kernel):
    argument = "source" if kernel.endswith("load") else "target"
    source, target = zeros(37), zeros(37)
    message = fails("out of bounds", getattr(planted, kernel), (3,), source, target, 37, BLOCK=BLOCK)
    assert f"element 37 from the start of argument {argument}" in message
    assert f"kernel {kernel}" in message
    assert "program (2, 0, 0)" in message
    assert "planted.py:" in message
    assert "`tl.store(" in message


def test_out_of_bounds_in_another_argument_is_caught():
    both = zeros(2, 37)
    fails("out of bounds", planted.no_mask_on_load, (3,), both[0], both[1], 37, BLOCK=BLOCK)
    fails("out of bounds", planted.before_the_start, (1,), both[1], both[0])


def test_elements_between_the_rows_of_a_view_are_out_of_bounds():
    wide, target = torch.randn(5, 11), zeros(5, 7)
    view = wide[:, :7]
    planted.copy_columns[(5,)](view, target, 11, 7, BLOCK=BLOCK)
    assert torch.equal(target, view)
    fails("out of bounds", planted.copy_columns, (5,), view, zeros(5, 8), 11, 8, BLOCK=BLOCK)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_masked_lanes_are_undefined(dtype):
    source, target = torch.ones(9, dtype=dtype), zeros(1, dtype=dtype)
    fails("masked lane", planted.sum_of_undefined, (1,), source, target, 9, BLOCK=BLOCK)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_masked_lanes_may_not_decide_a_maximum(dtype):
    source, target = torch.ones(9, dtype=dtype), zeros(1)
    fails("masked lane", planted.maximum_of_undefined, (1,), source, target, 9, BLOCK=BLOCK)
    planted.sum_of_selected[(1,)](source, target, 9, BLOCK=BLOCK)
    assert target.item() == 9


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_masked_index_leads_out_of_bounds(dtype):
    index, source, target = zeros(9, dtype=dtype), zeros(4), zeros(9)
    fails("out of bounds", planted.undefined_index, (1,), index, source, target, 9, BLOCK=BLOCK)


def test_a_sum_without_atomic_is_a_lost_update():
    source, target = torch.ones(64), zeros(1)
    message = fails("lost update", planted.sum_without_atomic, (4,), source, target, BLOCK=BLOCK)
    assert "argument target" in message
    planted.sum_without_atomic[(1,)](source, target.zero_(), BLOCK=BLOCK)


def test_a_sum_by_atomics_is_not_deterministic():
    source, target = torch.ones(64), zeros(1)
    planted.sum_by_atomic[(4,)](source, target, BLOCK=BLOCK)
    assert target.item() == 64
    integers = torch.ones(64, dtype=torch.int32), zeros(1, dtype=torch.int32)
    torch.use_deterministic_algorithms(True)
    try:
        planted.sum_by_atomic[(4,)](*integers, BLOCK=BLOCK)
        fails("float atomic", planted.sum_by_atomic, (4,), source, target, BLOCK=BLOCK)
    finally:
        torch.use_deterministic_algorithms(False)


def test_two_stores_to_one_address():
    fails("duplicate store", planted.store_from_all, (2,), zeros(1))
    planted.store_from_all[(1,)](zeros(1))
    fails("duplicate store", planted.lanes_collide, (1,), zeros(8), BLOCK=BLOCK)
    planted.lanes_agree[(1,)](zeros(8), BLOCK=BLOCK)


def test_reads_of_what_another_program_stores():
    fails("unordered read", planted.read_the_neighbour, (4,), zeros(5))
    fails("unordered read", planted.read_what_others_stored, (4,), zeros(4), zeros(1))
    fails("unordered read", planted.atomic_then_read, (4,), zeros(1, dtype=torch.int32), zeros(4, dtype=torch.int32))


def test_two_views_of_one_storage_are_one_memory():
    values = zeros(5)
    fails("unordered read", planted.scale, (2,), values[:4], values[1:], 4, BLOCK=2)


def test_memory_within_a_program_needs_a_barrier():
    arguments = zeros(BLOCK), zeros(BLOCK)
    fails("unordered read", planted.through_memory, (1,), *arguments, BARRIER=False, BLOCK=BLOCK)
    planted.through_memory[(1,)](*arguments, BARRIER=True, BLOCK=BLOCK)
    assert torch.equal(arguments[1], torch.arange(BLOCK - 1, -1, -1.0))


def test_launches_are_ordered():
    values = zeros(37)
    for _ in range(2):
        planted.in_place[(3,)](values, 37, BLOCK=BLOCK)
    assert (values == 2).all()


def test_arithmetic_on_bfloat16():
    a, b = (torch.randn(BLOCK).bfloat16() for _ in range(2))
    fails("bfloat16", planted.add_as_bfloat16, (1,), a, b, torch.empty_like(a), BLOCK=BLOCK)
    fails("bfloat16", planted.sum_as_bfloat16, (1,), a, torch.empty_like(a), BLOCK=BLOCK)


def test_rounding_to_bfloat16_is_that_of_torch():
    a = torch.randn(4096).bfloat16()
    b = torch.randn(4096).bfloat16()
    a[:3] = torch.tensor([float("nan"), float("inf"), 3.3e38])
    target = torch.empty_like(a)
    planted.add_as_float32[(1,)](a, b, target, BLOCK=4096)
    torch.testing.assert_close(target, (a.float() + b.float()).bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_products_round_as_tensor_cores_do():
    a, b = torch.randn(2, BLOCK, BLOCK)
    target = torch.empty(BLOCK, BLOCK)
    exact = (a.double() @ b.double()).float()
    planted.product[(1,)](a, b, target, BLOCK=BLOCK, PRECISION="ieee")
    torch.testing.assert_close(target, exact, rtol=1e-5, atol=1e-5)
    planted.product[(1,)](a, b, target, BLOCK=BLOCK, PRECISION="tf32")
    error = (target - exact).norm() / exact.norm()
    assert 2**-13 < error < 2**-10
    halves = a.bfloat16(), b.bfloat16()
    planted.product[(1,)](*halves, target, BLOCK=BLOCK, PRECISION="ieee")
    torch.testing.assert_close(target, halves[0].float() @ halves[1].float(), rtol=1e-5, atol=1e-5)
