"""What other tools and people write: put right with a count, or refused at once."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from same_folders import coco_content, xml
from tiny_folders import write_image, write_voc

from gkd_fast.data import locate, open_dataset
from gkd_fast.data.describe import describe, in_both
from gkd_fast.errors import InputError

BOX = ("cat", 0, (3, 4, 22, 23))


def notes(dataset) -> dict[str, int]:
    return {kind: note.number for kind, note in dataset.findings.notes.items()}


def write_deep(path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(path.with_suffix(".png" if values.dtype == np.uint16 else ".tiff"))
    path.unlink()


class TestImages:
    def turned(self, root: Path, orientation: int, stated: tuple[int, int]) -> Path:
        """A VOC folder with one image stored with 30 x 40 (h, w) pixels."""
        write_voc(root, {"a": [BOX]}, size=f"<size><width>{stated[1]}</width><height>{stated[0]}</height></size>")
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = Image.open(root / "JPEGImages/a.jpg")
        image.load()
        image.save(root / "JPEGImages/a.jpg", exif=exif)
        return root

    def test_turned_where_the_stated_size_is_the_upright_one(self, tmp_path: Path):
        dataset = open_dataset(self.turned(tmp_path, 6, (40, 30)))
        assert tuple(dataset[0][0].shape) == (3, 40, 30)
        assert dataset[0][1]["original_size"] == (40, 30)
        assert notes(dataset) == {"images turned as their EXIF orientation says": 1}

    def test_turned_upside_down(self, tmp_path: Path):
        dataset = open_dataset(self.turned(tmp_path, 3, (30, 40)))
        stored = np.asarray(Image.open(tmp_path / "JPEGImages/a.jpg"))
        np.testing.assert_array_equal(dataset[0][0].permute(1, 2, 0).numpy(), stored[::-1, ::-1])

    def test_not_turned_where_the_annotation_ignored_it(self, tmp_path: Path):
        dataset = open_dataset(self.turned(tmp_path, 6, (30, 40)))
        assert tuple(dataset[0][0].shape) == (3, 30, 40)
        assert notes(dataset) == {"images whose annotations ignore their EXIF orientation, not turned": 1}

    def test_a_size_that_fits_neither(self, tmp_path: Path):
        with pytest.raises(InputError, match=r"expected 41 x 30 pixels as its annotation says, got 30 x 40 .its EXIF"):
            open_dataset(self.turned(tmp_path, 6, (30, 41)))

    def test_one_scale_for_all_deep_images(self, tmp_path: Path):
        root = write_voc(tmp_path, {"a": [BOX], "b": [BOX]})
        ramp = np.tile(np.arange(40, dtype=np.uint16), (30, 1))
        write_deep(root / "JPEGImages/a.jpg", ramp * 100)  # up to 3900
        write_deep(root / "JPEGImages/b.jpg", ramp * 2)
        dataset = open_dataset(root)
        assert dataset.levels == 4096
        assert int(dataset[0][0].max()) == 3900 // 16
        assert int(dataset[1][0].max()) == 78 // 16
        assert notes(dataset) == {"grey images of more than 8 bits, scaled from 12 bit, 0 to 4095": 2}

    @pytest.mark.parametrize("values", [-1.0, np.nan, np.inf])
    def test_values_without_a_scale_are_refused(self, tmp_path: Path, values: float):
        root = write_voc(tmp_path, {"a": [BOX]})
        write_deep(root / "JPEGImages/a.jpg", np.full((30, 40), values, dtype=np.float32))
        with pytest.raises(InputError, match="expected grey values from 0"):
            open_dataset(root)

    def test_two_scales_are_refused(self, tmp_path: Path):
        root = write_voc(tmp_path, {"a": [BOX], "b": [BOX]})
        ramp = np.tile(np.arange(40, dtype=np.float32), (30, 1))
        write_deep(root / "JPEGImages/a.jpg", ramp / 40)
        write_deep(root / "JPEGImages/b.jpg", ramp * 100)
        with pytest.raises(InputError, match=r"on the others' scale of 0 to 4095, got 0 to 0.975"):
            open_dataset(root)

    def test_damaged_images_are_refused_together(self, tmp_path: Path):
        root = write_voc(tmp_path, {name: [BOX] for name in "abc"})
        for name in "ac":
            content = (root / f"JPEGImages/{name}.jpg").read_bytes()
            (root / f"JPEGImages/{name}.jpg").write_bytes(content[: len(content) // 2])
        with pytest.raises(InputError, match=r"a\.jpg: expected a complete.*first of 2 images that cannot be read"):
            open_dataset(root)


class TestVoc:
    def test_namespaces_are_ignored(self, tmp_path: Path):
        root = write_voc(tmp_path, {"a": [BOX]})
        path = root / "Annotations/a.xml"
        path.write_text(path.read_text().replace("<annotation>", '<annotation xmlns="http://example.org/voc">', 1))
        assert len(open_dataset(root)[0][1]["labels"]) == 1

    @pytest.mark.parametrize("tag", ["annotations", "Objects", "html"])
    def test_other_kinds_of_files_are_refused(self, tmp_path: Path, tag: str):
        root = write_voc(tmp_path, {"a": [BOX], "b": [BOX]})
        (root / "Annotations/a.xml").write_text(f"<{tag}><object/></{tag}>")
        with pytest.raises(InputError, match=f"a.xml: expected PASCAL VOC's <annotation> .*, got <{tag}>"):
            open_dataset(root)

    @pytest.mark.parametrize("encoding", ["gb2312", "utf-16", "latin-1", "utf-8-sig"])
    def test_encodings(self, tmp_path: Path, encoding: str):
        name = "tür" if encoding == "latin-1" else "人"
        root = write_voc(tmp_path, {"a": [BOX]})
        text = (root / "Annotations/a.xml").read_text().replace("cat", name)
        declared = encoding.removesuffix("-sig")
        (root / "Annotations/a.xml").write_bytes(f'<?xml version="1.0" encoding="{declared}"?>{text}'.encode(encoding))
        assert open_dataset(root).classes == (name,)

    def test_an_encoding_that_does_not_show(self, tmp_path: Path):
        root = write_voc(tmp_path, {"a": [BOX]})
        text = (root / "Annotations/a.xml").read_text().replace("cat", "tür")
        (root / "Annotations/a.xml").write_bytes(text.encode("latin-1"))
        with pytest.raises(InputError, match="save it as UTF-8"):
            open_dataset(root)

    @pytest.mark.parametrize("content", [b"\xff\xfea\x00\n\x00", b"a\x00\n\x00", b"\xef\xbb\xbfa\r\n"])
    def test_encodings_of_a_split(self, tmp_path: Path, content: bytes):
        root = write_voc(tmp_path, {"a": [BOX], "b": [BOX]})
        (root / "ImageSets/Main/train.txt").write_bytes(content)
        assert len(open_dataset(root)) == 1

    @pytest.mark.parametrize(
        "line", ["a 1", "a  -1", "a.jpg", "JPEGImages/a.jpg", "./Annotations/a.xml", "a.jpg a.xml"]
    )
    def test_lines_of_a_split(self, tmp_path: Path, line: str):
        root = write_voc(tmp_path, {"a": [BOX], "b": [BOX]})
        (root / "ImageSets/Main/train.txt").write_text(f"{line}\n")
        assert [record.path.name for record in open_dataset(root).records] == ["a.jpg"]

    def test_names_with_spaces_and_dots(self, tmp_path: Path):
        root = write_voc(tmp_path, {"a 1": [BOX], "b.c": [BOX]})
        assert len(open_dataset(root)) == 2

    def test_hidden_files_are_skipped(self, tmp_path: Path):
        root = write_voc(tmp_path, {"a": [BOX]})
        for place in ("Annotations/._a.xml", "JPEGImages/._a.jpg", "ImageSets/Main/._train.txt"):
            (root / place).write_bytes(b"\x00\x05\x16\x07")
        assert len(open_dataset(root)) == 1

    def test_a_name_twice_in_a_split(self, tmp_path: Path):
        root = write_voc(tmp_path, {"a": [BOX], "b": [BOX]})
        (root / "ImageSets/Main/train.txt").write_text("a\nb\na\n")
        dataset = open_dataset(root)
        assert (len(dataset), notes(dataset)) == (2, {"images named twice by a split, taken once": 1})

    def test_files_of_each_class_are_no_splits(self, tmp_path: Path):
        root = write_voc(tmp_path, {"a": [BOX]})
        (root / "ImageSets/Main/cat_train.txt").write_text("a 1\n")
        assert locate(root).names[0] == "train"

    def test_normalised_boxes_are_refused(self, tmp_path: Path):
        root = write_voc(tmp_path, {"a": [("cat", 0, (0.1, 0.2, 0.5, 0.9))], "b": [("cat", 0, (0.1, 0.2, 0.5, 1))]})
        with pytest.raises(InputError, match=r"a\.xml: .*look normalised to 0..1 \(the first of 2 files"):
            open_dataset(root)

    def test_polygons(self, tmp_path: Path):
        root = write_voc(tmp_path, {"a": [BOX]})
        points = "<polygon><x1>5</x1><y1>6</y1><x2>20</x2><y2>9</y2><x3>8</x3><y3>25</y3></polygon>"
        text = (root / "Annotations/a.xml").read_text()
        begin, end = text.index("<bndbox>"), text.index("</bndbox>") + len("</bndbox>")
        (root / "Annotations/a.xml").write_text(text[:begin] + points + text[end:])
        dataset = open_dataset(root)
        assert dataset[0][1]["boxes"].tolist() == [[4, 5, 20, 25]]
        assert notes(dataset) == {"boxes taken as the bounds of a polygon": 1}

    def test_rotated_boxes_are_named(self, tmp_path: Path):
        root = write_voc(tmp_path, {"a": [BOX]})
        path = root / "Annotations/a.xml"
        path.write_text(path.read_text().replace("bndbox", "robndbox"))
        with pytest.raises(InputError, match="object 1: expected a bndbox, got robndbox"):
            open_dataset(root)

    def test_the_image_that_the_file_names(self, tmp_path: Path):
        root = write_voc(tmp_path, {"a": [BOX]}, size="<filename>photo 7.png</filename>")
        write_image(root / "JPEGImages/photo 7.png")
        (root / "JPEGImages/a.jpg").unlink()
        assert open_dataset(root).records[0].path.name == "photo 7.png"

    def test_images_without_annotation_are_counted(self, tmp_path: Path):
        (tmp_path / "all").mkdir()
        for name in "ab":
            write_image(tmp_path / "all" / f"{name}.jpg")
        (tmp_path / "all/a.xml").write_text(xml((30, 40), [("cat", 2, 3, 20, 25)]))
        dataset = open_dataset(tmp_path / "all")
        assert (len(dataset), notes(dataset)) == (1, {"images without an annotation file, left out": 1})


class TestCoco:
    @pytest.fixture
    def edit(self, tmp_path: Path) -> Callable:
        (tmp_path / "train").mkdir()
        boxes = [("ant", 2, 3, 20, 25), ("bee", 1, 1, 9, 9)]
        split = {write_image(tmp_path / "train" / f"{name}.jpg"): ((30, 40), boxes) for name in "xy"}

        def edited(change: Callable[[dict], object]) -> Path:
            content = coco_content(split, ("ant", "bee"))
            change(content)
            (tmp_path / "train.json").write_text(json.dumps(content))
            return tmp_path

        return edited

    def test_a_supercategory_is_no_class(self, edit: Callable):
        root = edit(lambda c: c["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"}))
        assert open_dataset(root).classes == ("ant", "bee")
        kind = "categories without boxes that only group others (supercategory), left out"
        assert notes(open_dataset(root)) == {kind: 1}

    def test_a_category_without_boxes_is_a_class(self, edit: Callable):
        root = edit(lambda c: c["categories"].append({"id": 9, "name": "cow", "supercategory": "things"}))
        assert open_dataset(root).classes == ("ant", "bee", "cow")

    @pytest.mark.parametrize("form", [str, float, lambda value: f"image-{value}"])
    def test_ids_of_any_kind(self, edit: Callable, form: Callable):
        def change(content: dict) -> None:
            for item in content["images"]:
                item["id"] = form(item["id"])
            for item in content["annotations"]:
                item["image_id"], item["category_id"] = form(item["image_id"]), form(item["category_id"])
            for item in content["categories"]:
                item["id"] = form(item["id"])

        dataset = open_dataset(edit(change))
        assert [len(dataset[index][1]["labels"]) for index in range(2)] == [2, 2]

    @pytest.mark.parametrize("name", ["train\\x.jpg", "train/x.jpg", "C:\\data\\x.jpg", "/data/upload/x.jpg"])
    def test_file_names(self, edit: Callable, name: str):
        root = edit(lambda c: c["images"][1].update(file_name=name))
        assert [record.path.name for record in open_dataset(root).records] == ["x.jpg", "y.jpg"]

    def test_images_that_lie_elsewhere(self, edit: Callable):
        root = edit(lambda c: None)
        (root / "deep/er").mkdir(parents=True)
        (root / "train/x.jpg").rename(root / "deep/er/x.jpg")
        dataset = open_dataset(root)
        assert (len(dataset), notes(dataset)) == (2, {"images found in another folder or spelling": 1})

    def test_another_spelling(self, edit: Callable):
        root = edit(lambda c: c["images"][1].update(file_name="X.JPG"))
        assert notes(open_dataset(root)) == {"images found in another folder or spelling": 1}

    def test_one_file_for_two_images(self, edit: Callable):
        root = edit(lambda c: c["images"][0].update(file_name="elsewhere/x.jpg"))
        with pytest.raises(InputError, match=r"train/x\.jpg: expected each image once, got it for .* and "):
            open_dataset(root)

    @pytest.mark.parametrize(
        "segmentation",
        [
            [[2, 3, 20, 3, 20, 25]],
            [2, 3, 20, 3, 20, 25],
            {"size": [30, 40], "counts": [2 * 30 + 3, 22] + [8, 22] * 17 + [600 + 8 - 11]},
        ],
    )
    @pytest.mark.parametrize("bbox", [None, [], "missing"])
    def test_boxes_of_segmentations(self, edit: Callable, segmentation: object, bbox: object):
        def change(content: dict) -> None:
            first = content["annotations"][0]
            first.update(segmentation=segmentation, bbox=bbox)
            if bbox == "missing":
                del first["bbox"]

        dataset = open_dataset(edit(change))
        boxes = [box for index in range(2) for box in dataset[index][1]["boxes"].tolist()]
        assert boxes.count([2, 3, 20, 25]) == 2
        assert notes(dataset) == {"boxes taken as the bounds of a segmentation": 1}

    def test_normalised_boxes_are_refused(self, edit: Callable):
        def change(content: dict) -> None:
            for item in content["annotations"]:
                item["bbox"] = [0.1, 0.2, 0.3, 0.4]

        with pytest.raises(InputError, match=r"all boxes of the file look normalised to 0..1 \(the first of 4"):
            open_dataset(edit(change))

    def test_corners_read_as_sizes_are_pointed_at(self, edit: Callable):
        def change(content: dict) -> None:
            for item in content["annotations"]:
                item["bbox"] = [20, 15, 39, 29]

        dataset = open_dataset(edit(change))
        assert describe("train", dataset)[-1].startswith("  look at them: so many boxes outside")

    def test_everything_wrong_is_said_at_once(self, edit: Callable):
        def change(content: dict) -> None:
            content["annotations"][0]["bbox"] = [50, 1, 8, 8]
            content["annotations"][1]["bbox"] = [1, 2, 3]
            content["images"][0]["width"] = 41

        with pytest.raises(InputError) as error:
            open_dataset(edit(change))
        for part in ("annotation 2: bbox: expected x, y, width, height", "expected 41 x 30 pixels"):
            assert part in str(error.value)
        assert "\n" not in str(error.value)


def test_the_first_lines_of_a_run(tmp_path: Path):
    root = write_voc(tmp_path, {"a": [BOX, ("dog", 1, (1, 1, 9, 9)), ("cat", 0, (7, 7, 7, 7))], "b": []})
    write_voc(tmp_path, {"a": [BOX, ("dog", 1, (1, 1, 9, 9)), ("cat", 0, (7, 7, 7, 7))], "c": [BOX]}, split="val")
    source = locate(root)
    train, val = source.read_train(), source.read_val(("cat", "dog"))
    assert describe("train", train) == [
        "train: 2 images, 1 boxes: cat 1, dog 0",
        f"  1 of 2 images have no box, first {root}/JPEGImages/b.jpg",
        "  crowds and difficult objects, not trained on: 1",
        f"  boxes of no area dropped: 1, first {root}/Annotations/a.xml: object 3 (cat)",
    ]
    assert in_both(train, val) == [f"  images that are also trained on: 1, first {root}/JPEGImages/a.jpg"]
