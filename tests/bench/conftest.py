import pytest

from bench.operators.shapes import Shape


@pytest.fixture(scope="session")
def tiny() -> Shape:
    """A shape on which every loop is quick."""
    return Shape(
        name="tiny",
        images=2,
        height=70,
        width=100,
        channels=8,
        instances=12,
        classes=4,
        prototypes_per_class=3,
        rois=16,
        problems=3,
        samples=24,
        sample_channels=8,
        picks=5,
    )
