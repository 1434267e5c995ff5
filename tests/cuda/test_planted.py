"""Every layer of the net under the CUDA kernels catches the mistakes that it is there for."""

import emulated
import pytest

PLANTED = emulated.HERE / "planted" / "planted.cu"


def caught(kernel, sanitizer="plain", orders=(0,)):
    """What each order reports of a planted kernel, "" where it sees nothing."""
    program = emulated.build(PLANTED, sanitizer)
    reports = []
    for order in orders:
        try:
            emulated.execute(program, kernel, str(order))
            reports.append("")
        except emulated.EmulationError as error:
            reports.append(str(error))
    return reports


@pytest.mark.parametrize("kernel", ["none", "warp_exchange"])
def test_sound_kernels_pass_everywhere(kernel):
    assert not any(caught(kernel, orders=emulated.ORDERS))
    assert caught(kernel, "address") == [""]
    assert caught(kernel, "thread") == [""]


@pytest.mark.parametrize("kernel", ["missing_barrier", "write_after_read"])
def test_schedules_find_missing_barriers_by_values(kernel):
    assert any("status 4" in report for report in caught(kernel, orders=emulated.ORDERS))


@pytest.mark.parametrize("kernel", ["missing_barrier", "write_after_read", "shuffle_as_fence", "non_atomic_sum"])
def test_thread_sanitizer_finds_races(kernel):
    assert "ThreadSanitizer: data race" in caught(kernel, "thread")[0]


def test_only_thread_sanitizer_finds_a_sum_that_is_not_atomic_across_blocks():
    assert not any(caught("non_atomic_sum", orders=emulated.ORDERS))
    assert caught("non_atomic_sum", "address") == [""]


@pytest.mark.parametrize(
    ("kernel", "report"),
    [
        ("out_of_bounds", "heap-buffer-overflow"),
        ("tail_read", "heap-buffer-overflow"),
        ("out_of_shared", "use-after-poison"),
        ("unaligned_vector", "misaligned address"),
        ("int_overflow", "signed integer overflow"),
    ],
)
def test_address_and_undefined_behaviour_sanitizers_find_wrong_accesses(kernel, report):
    assert report in caught(kernel, "address")[0]


@pytest.mark.parametrize(
    ("kernel", "report"),
    [
        ("divergent_shuffle", "threads wait for each other: thread"),
        ("different_shuffles", "lanes diverge"),
        ("return_before_barrier", "has returned"),
    ],
)
def test_emulation_names_threads_that_do_not_meet(kernel, report):
    assert all(report in found and "line" in found for found in caught(kernel, orders=emulated.ORDERS))


def test_unwritten_shared_memory_is_not_a_number():
    assert caught("unwritten_shared") == ["status 4"]
