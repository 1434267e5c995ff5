import pytest

from gkd_fast import ops


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    """Runs the test once under each backend of the CPU."""
    with ops.use_backend(request.param):
        yield request.param


@pytest.fixture
def reference_backend():
    with ops.use_backend("reference"):
        yield
