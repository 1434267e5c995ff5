"""Padded sizes of batches: few of them, so that a compiled network has few graphs and padding stays small."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations

Size = tuple[int, int]


class SizeBuckets:
    """At most `limit` padded sizes that hold the images of a data set; the largest one holds them all.

    Sizes are merged, two at a time, where that adds the least padding over the whole data set.

    Args:
        sizes: (height, width) of every image, in pixels.
        limit: most padded sizes, at least 1.
        multiple: sides of padded sizes are multiples of this, in pixels.
    """

    def __init__(self, sizes: Iterable[Size], limit: int, *, multiple: int = 32) -> None:
        if limit < 1:
            raise ValueError(f"expected at least 1 size bucket, got {limit}")
        groups = Counter(
            (-(-height // multiple) * multiple, -(-width // multiple) * multiple) for height, width in sizes
        )
        if not groups:
            raise ValueError("expected at least one image, got none")
        largest = _union(*groups)
        while len({largest, *groups}) > limit and len(groups) > 1:
            one, other = min(combinations(sorted(groups), 2), key=lambda pair: _added(groups, *pair))
            groups[_union(one, other)] += groups.pop(one) + groups.pop(other)
        self.sizes: tuple[Size, ...] = tuple(sorted({largest, *groups}, key=lambda size: (size[0] * size[1], size)))

    def index(self, size: Size) -> int:
        """The number of the smallest padded size that holds an image (height, width).

        Raises:
            ValueError: if none does.
        """
        for number, bucket in enumerate(self.sizes):
            if size[0] <= bucket[0] and size[1] <= bucket[1]:
                return number
        raise ValueError(f"image: expected at most {self.sizes[-1]} pixels (height, width), got {size}")

    def fit(self, sizes: Sequence[Size]) -> Size:
        """The smallest padded size (height, width) that holds every image of a batch."""
        return self.sizes[self.index(_union(*sizes))]


def _union(*sizes: Size) -> Size:
    return max(height for height, _ in sizes), max(width for _, width in sizes)


def _added(groups: Counter[Size], one: Size, other: Size) -> int:
    """Pixels of padding that merging two sizes adds."""
    height, width = _union(one, other)
    return sum(groups[size] * (height * width - size[0] * size[1]) for size in (one, other))
