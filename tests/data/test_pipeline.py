import pytest
import torch
from torchvision import tv_tensors

from gkd_fast.data import EpochSampler, PreparedDataset, Scenes, build_loader, open_dataset
from gkd_fast.data.transforms import resized_size


class Counted(Scenes):
    """Scenes that count how often one is drawn."""

    drawn = 0

    def __getitem__(self, index: int):
        self.drawn += 1
        return super().__getitem__(index)


def prepared(count: int = 8, **options) -> PreparedDataset:
    options = {"short_side": 64, "long_side": 96, **options}
    return PreparedDataset(Counted(count, size=(64, 80)), **options)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (800, 1067)), ((640, 480), (1067, 800)), ((300, 900), (444, 1333)), ((800, 1333), (800, 1333))],
)
def test_resized_size(size, expected):
    assert resized_size(size, short_side=800, long_side=1333) == expected


def test_boxes_are_in_pixels_of_the_resized_image():
    scenes = Scenes(3, size=(64, 96))
    dataset = PreparedDataset(scenes, short_side=128, long_side=500)
    image, target = dataset[1]
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 128, 192))
    torch.testing.assert_close(
        target["boxes"].as_subclass(torch.Tensor), 2 * scenes[1][1]["boxes"].as_subclass(torch.Tensor)
    )
    assert target["boxes"].canvas_size == (128, 192)
    assert (target["image_id"], target["original_size"]) == (1, (64, 96))
    assert torch.equal(target["condition"], scenes[1][1]["condition"])
    assert dataset.classes == scenes.classes
    assert dataset.ground_truth() == scenes.ground_truth()


def test_flip_mirrors_image_and_boxes():
    (plain_image, plain), (image, target) = prepared()[2], prepared(flip=1.0)[2]
    assert torch.equal(image, plain_image.flip(-1))
    width = image.shape[-1]
    torch.testing.assert_close(target["boxes"][:, [0, 2]], width - plain["boxes"][:, [2, 0]])
    assert torch.equal(target["boxes"][:, [1, 3]], plain["boxes"][:, [1, 3]])
    assert torch.equal(prepared(flip=1.0).without_flip()[2][0], plain_image)


def flips(dataset: PreparedDataset, epoch: int) -> list[bool]:
    dataset.set_epoch(epoch)
    plain = dataset.without_flip()
    return [not torch.equal(dataset[i][0], plain[i][0]) for i in range(len(dataset))]


def test_flips_depend_on_seed_epoch_and_index_alone():
    first = flips(prepared(32, flip=0.5, cache=True), 0)
    assert 6 < sum(first) < 26
    assert first == flips(prepared(32, flip=0.5), 0)
    assert first != flips(prepared(32, flip=0.5, cache=True), 1)
    assert first != flips(prepared(32, flip=0.5, seed=1), 0)


def test_cache_keeps_the_resized_image_unflipped():
    dataset = prepared(flip=1.0, cache=True, short_side=32)
    first, again = dataset[3], dataset[3]
    assert dataset.dataset.drawn == 1
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1]["boxes"], again[1]["boxes"])
    assert torch.equal(dataset.without_flip()[3][0], first[0].flip(-1))
    assert dataset.dataset.drawn == 1
    uncached = prepared(flip=1.0, short_side=32)
    assert torch.equal(uncached[3][0], first[0])
    uncached[3]
    assert uncached.dataset.drawn == 2


def test_labels_per_image_without_drawing(voc):
    dataset = prepared()
    labels = dataset.labels_per_image()
    assert dataset.dataset.drawn == 0
    assert labels == [set((dataset[i][1]["labels"] - 1).tolist()) for i in range(len(dataset))]
    # The difficult dog of the second class takes no part, the plain one does.
    assert PreparedDataset(open_dataset(voc, "train"), short_side=30, long_side=40).labels_per_image() == [{0, 1}, {0}]


@pytest.mark.parametrize("options", [{"short_side": 0}, {"long_side": 63}, {"flip": 1.5}, {"seed": -1}])
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match=r"expected .* got"):
        prepared(**options)


def test_sampler_permutes_anew_in_every_epoch():
    sampler = EpochSampler(20, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(20))
    assert first == list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(EpochSampler(20, seed=4)) != first
    assert list(EpochSampler(20, seed=3, shuffle=False)) == list(range(20))


@pytest.mark.parametrize("shuffle", [True, False])
def test_sampler_resumes_in_the_middle(shuffle):
    sampler = EpochSampler(20, seed=3, shuffle=shuffle)
    sampler.set_epoch(5)
    whole = list(sampler)
    sampler.set_epoch(5, start=12)
    assert list(sampler) == whole[12:]
    assert len(sampler) == 20
    with pytest.raises(ValueError, match="got 5 and 21"):
        sampler.set_epoch(5, start=21)


def test_seed_and_epoch_do_not_mix():
    one, other = EpochSampler(50, seed=1), EpochSampler(50, seed=0)
    other.set_epoch(1)
    assert list(one) != list(other)


def ids(loader) -> list[list[int]]:
    return [[target["image_id"] for target in targets] for _, targets in loader]


def test_batches_are_lists_of_plain_tensors():
    dataset = prepared()
    (images, targets), *_ = build_loader(dataset, batch_size=3, shuffle=False, seed=0, workers=0)
    assert type(images) is type(targets) is list
    assert type(images[0]) is type(targets[0]["boxes"]) is torch.Tensor
    assert isinstance(dataset[0][0], tv_tensors.Image)
    assert torch.equal(images[1], dataset[1][0].as_subclass(torch.Tensor))
    assert targets[1]["image_id"] == 1


def test_incomplete_batches():
    dataset = prepared(8)
    plain = build_loader(dataset, batch_size=3, shuffle=False, seed=0, workers=0)
    assert ids(plain) == [[0, 1, 2], [3, 4, 5], [6, 7]]
    shuffled = build_loader(dataset, batch_size=3, shuffle=True, seed=0, workers=0)
    assert [len(batch) for batch in ids(shuffled)] == [3, 3]
    assert len(shuffled) == 2
    assert [len(b) for b in ids(build_loader(dataset, batch_size=9, shuffle=True, seed=0, workers=0))] == [8]


def test_chosen_indices():
    loader = build_loader(prepared(8), batch_size=2, shuffle=False, seed=0, workers=0, indices=[5, 1, 6])
    assert ids(loader) == [[5, 1], [6]]


def test_loader_resumes_in_the_middle_and_leaves_the_global_generator_alone():
    loader = build_loader(prepared(8), batch_size=2, shuffle=True, seed=1, workers=0)
    loader.sampler.set_epoch(3)
    state = torch.random.get_rng_state()
    whole = ids(loader)
    assert torch.equal(torch.random.get_rng_state(), state)
    loader.sampler.set_epoch(3, start=4)
    assert ids(loader) == whole[2:]
    assert len(loader) == 4


def test_workers_give_the_same_batches_in_every_epoch():
    alone, helped = (
        build_loader(prepared(6, flip=0.5, cache=True), batch_size=2, shuffle=True, seed=1, workers=workers)
        for workers in (0, 2)
    )
    seen = []
    for epoch in range(3):
        batches = []
        for loader in (alone, helped):
            loader.dataset.set_epoch(epoch)
            loader.sampler.set_epoch(epoch)
            batches.append([image for images, _ in loader for image in images])
        for a, b in zip(*batches, strict=True):
            assert torch.equal(a, b)
        seen.append(torch.stack(batches[0]).sum(0))
    assert not torch.equal(seen[0], seen[1])


def test_batch_size_out_of_range():
    with pytest.raises(ValueError, match="got 0"):
        build_loader(prepared(), batch_size=0, shuffle=False, seed=0, workers=0)


def test_sizes_are_those_of_the_resized_images():
    dataset = prepared(4, short_side=70, long_side=100)
    assert dataset.sizes() == [tuple(dataset[index][0].shape[-2:]) for index in range(4)]


def test_samples_say_whether_they_are_flipped():
    dataset = prepared(6, flip=0.5)
    plain = dataset.without_flip()
    for index in range(6):
        image, target = dataset[index]
        assert target["flipped"] is not torch.equal(image, plain[index][0])
        assert plain[index][1]["flipped"] is False
