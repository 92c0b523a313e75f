"""Pictures with boxes around objects, for detection: annotations as of VOC (XML) or COCO (JSON)."""

import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sslmodules.datamodules.pictures import EXTENSIONS, picture_size, read_picture
from sslmodules.datamodules.splits import SplitDataModule, by_stem, existing, listed_stems, require_found

Target = dict[str, Tensor]  # of one picture: "boxes" (N, 4), "labels" (N,), "iscrowd" (N,)


class Box(NamedTuple):
    """An object: its corners in pixels, its class, and whether it is a crowd (COCO) or difficult (VOC)."""

    x0: float
    y0: float
    x1: float
    y1: float
    name: str
    crowd: bool


class BoxedPictures(Dataset):
    """Picture files with the boxes in them.

    Args:
        pictures: paths.
        boxes: of each picture.
        classes: names; a label is the place in them.

    Raises:
        ValueError: if a box is of no class; and, on reading, if a picture cannot be read.

    Example:
        >>> len(BoxedPictures(["a.jpg"], [[Box(0, 0, 8, 8, "cat", False)]], ["cat", "dog"]))
        1

    """

    def __init__(self, pictures: Sequence[str], boxes: Sequence[Sequence[Box]], classes: Sequence[str]) -> None:
        for picture, of_picture in zip(pictures, boxes, strict=True):
            unknown = next((box.name for box in of_picture if box.name not in classes), None)
            if unknown is not None:
                raise ValueError(
                    f"{picture} has a box of {unknown!r}, which is none of the classes {', '.join(classes[:5])}"
                    f"{', ...' if len(classes) > 5 else ''}: pass classes= with all of them"
                )
        self.files = pictures
        self.boxes = boxes
        self.number = {name: number for number, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """A picture, uint8 (3, H, W), and its objects; boxes are cut to it, and left out where nothing remains."""
        file, boxes = self.files[index], self.boxes[index]
        image = read_picture(file, picture_size(file))
        height, width = image.shape[1:]
        corners = torch.tensor([box[:4] for box in boxes]).view(-1, 4)  # (N, 4)
        corners = corners.minimum(torch.tensor([width, height, width, height])).clamp_min(0)
        stays = (corners[:, 2:] > corners[:, :2]).all(1)
        return image, {
            "boxes": corners[stays],
            "labels": torch.tensor([self.number[box.name] for box in boxes], dtype=torch.long)[stays],
            "iscrowd": torch.tensor([box.crowd for box in boxes], dtype=torch.bool)[stays],
        }

    def fetch(self, rows: Tensor) -> tuple[list[Tensor], list[Target]]:
        """The pictures at `rows`, each of its own size, and their objects."""
        images, targets = zip(*(self[row] for row in rows.tolist()), strict=True)
        return list(images), list(targets)


class BoxesDataModule(SplitDataModule):
    """Pictures with boxes, whose classes are known when the training split has been read."""

    @property
    def num_classes(self) -> int:
        """Number of classes; reads the training split's annotations."""
        self.split("train")
        assert self.classes is not None
        return len(self.classes)


class VOCBoxes(BoxesDataModule):
    """Pictures with VOC's XML files: batches of B uint8 images (3, H, W) and B mappings of their objects.

    A mapping has "boxes" (N, 4), float x0, y0, x1, y1 in pixels, "labels" (N,) from 0, and "iscrowd" (N,) of those that
    neither training nor measurement is to count: VOC's difficult ones.

    A split is one or several of: a list file as VOC has them, `VOC2012/ImageSets/Main/train.txt`, beside which lie
    `VOC2012/JPEGImages` and `VOC2012/Annotations`; or a folder of pictures with an XML file of the same name beside
    each.

    Args:
        train: the training split.
        val: the validation split; None: there is none.
        test: the test split; None: test is val.
        classes: names, in the order of their labels; None: those of the training split, sorted.
        batch_size: pictures in a batch of one process; None: 16, or all if there are fewer.
        num_workers: None: the processors of this process less one, at most 8.
        seed: of the order.
        drop_last: leave out an odd last training batch; None: unless over a fifth of an epoch would go with it.

    Raises:
        FileNotFoundError: from `setup`, if a list or folder does not exist.
        ValueError: from `setup`, if a picture has no XML file or one that cannot be read, a box is of no class, or a
            split is empty; while loading, also in workers, if a picture cannot be read.

    Example:
        >>> data = VOCBoxes(
        ...     train=[f"VOCdevkit/{year}/ImageSets/Main/trainval.txt" for year in ("VOC2007", "VOC2012")],
        ...     val="VOCdevkit/VOC2007/ImageSets/Main/test.txt",
        ... )

    """

    def __init__(
        self,
        train: str | list[str],
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        classes: list[str] | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        drop_last: bool | None = None,
    ) -> None:
        super().__init__(train, val, test, batch_size, num_workers, seed, drop_last)
        self.save_hyperparameters(logger=False)
        self.classes = classes

    def dataset(self, name: str | list[str]) -> BoxedPictures:
        """The pictures of a split and their boxes."""
        pictures: list[str] = []
        boxes: list[list[Box]] = []
        for path in [name] if isinstance(name, str) else name:
            found, annotations = _voc_files(existing("split", path))
            pictures += found
            boxes += map(read_voc, annotations)
        if self.classes is None:
            if name != self.names["train"]:
                self.split("train")  # the classes are those of the training pictures
            else:
                self.classes = sorted({box.name for of_picture in boxes for box in of_picture})
        assert self.classes is not None
        return BoxedPictures(pictures, boxes, self.classes)


class COCOBoxes(BoxesDataModule):
    """Pictures with a JSON file as of COCO: batches of B uint8 images (3, H, W) and B mappings of their objects.

    A mapping has "boxes" (N, 4), float x0, y0, x1, y1 in pixels, "labels" (N,) from 0 in the order of COCO's category
    numbers, and "iscrowd" (N,) of those that neither training nor measurement is to count. In the paths, `{split}`
    stands for the name of the split, as in `images="coco/{split}2017"`,
    `annotations="coco/annotations/instances_{split}2017.json"`.

    Args:
        images: folder in which the pictures lie under the names that the JSON file gives them.
        annotations: the JSON file.
        train: what the training split is called.
        val: what the validation split is called; None: there is none.
        test: what the test split is called; None: test is val.
        batch_size: pictures in a batch of one process; None: 16, or all if there are fewer.
        num_workers: None: the processors of this process less one, at most 8.
        seed: of the order.
        drop_last: leave out an odd last training batch; None: unless over a fifth of an epoch would go with it.

    Raises:
        FileNotFoundError: from `setup`, if a folder or file does not exist.
        ValueError: at once, if the splits would be the same; from `setup`, if the file is not as of COCO, a picture is
            missing, a box is of no class of the training split, or a split is empty; while loading, also in workers, if
            a picture cannot be read.

    Example:
        >>> data = COCOBoxes("coco/{split}2017", "coco/annotations/instances_{split}2017.json")

    """

    def __init__(
        self,
        images: str,
        annotations: str,
        train: str = "train",
        val: str | None = "val",
        test: str | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        drop_last: bool | None = None,
    ) -> None:
        super().__init__(train, val, test, batch_size, num_workers, seed, drop_last)
        self.save_hyperparameters(logger=False)
        self.require_split(annotations)
        self.images = images
        self.annotations = annotations

    def dataset(self, name: str) -> BoxedPictures:
        """The pictures of a split and their boxes."""
        folder = existing("images", self.images, name)
        names, boxes, classes = read_coco(existing("annotations", self.annotations, name))
        if name == self.names["train"]:
            self.classes = classes
        else:
            self.split("train")  # the classes are those of the training pictures
        assert self.classes is not None
        found = {name: os.path.join(folder, name) for name in names if os.path.isfile(os.path.join(folder, name))}
        require_found(names, found, "file", folder, "add them, or take them out of the JSON file")
        return BoxedPictures([found[name] for name in names], boxes, self.classes)


def read_voc(file: str) -> list[Box]:
    """The boxes of an XML file as of VOC, whose pixels are counted from 1, to the edges of the pixels, from 0.

    Raises:
        ValueError: if it is none; the sentence names it.

    """
    try:
        return [
            Box(
                float(_text(found, "bndbox/xmin")) - 1,
                float(_text(found, "bndbox/ymin")) - 1,
                float(_text(found, "bndbox/xmax")),
                float(_text(found, "bndbox/ymax")),
                name=_text(found, "name"),
                crowd=found.findtext("difficult", "0").strip() == "1",
            )
            for found in ElementTree.parse(file).getroot().iter("object")
        ]
    except (ElementTree.ParseError, ValueError, OSError) as error:
        raise ValueError(f"{file} is no annotation as of VOC ({error}): repair or remove it") from error


def read_coco(file: str) -> tuple[list[str], list[list[Box]], list[str]]:
    """The pictures' names, the boxes of each and the categories' names of a JSON file as of COCO.

    Raises:
        ValueError: if it is none; the sentence names it.

    """
    try:
        with open(file, encoding="utf-8") as text:
            held: dict[str, Any] = json.load(text)
        categories = {kind["id"]: kind["name"] for kind in sorted(held["categories"], key=lambda kind: kind["id"])}
        boxes: dict[int, list[Box]] = {picture["id"]: [] for picture in held["images"]}
        for found in held["annotations"]:
            x, y, width, height = found["bbox"]
            name, crowd = categories[found["category_id"]], bool(found.get("iscrowd", False))
            boxes[found["image_id"]].append(Box(x, y, x + width, y + height, name, crowd))
        return [picture["file_name"] for picture in held["images"]], list(boxes.values()), list(categories.values())
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no JSON file as of COCO ({type(error).__name__}: {error}): repair it") from error


def _voc_files(path: str) -> tuple[list[str], list[str]]:
    """The pictures of a split and their XML files."""
    folder = annotations = path
    if os.path.isfile(path):  # <root>/ImageSets/Main/<split>.txt
        root = os.path.join(os.path.dirname(path), os.pardir, os.pardir)
        folder, annotations = os.path.join(root, "JPEGImages"), os.path.join(root, "Annotations")
    pictures, files = by_stem(folder, EXTENSIONS), by_stem(annotations, (".xml",))
    stems = listed_stems(path) if os.path.isfile(path) else list(pictures)
    require_found(stems, pictures, "file", folder, "take them out of the list, or add them")
    require_found(stems, files, "XML file", annotations, "add them")
    return [pictures[stem] for stem in stems], [files[stem] for stem in stems]


def _text(element: ElementTree.Element, tag: str) -> str:
    text = element.findtext(tag)
    if text is None:
        raise ValueError(f"an object has no {tag}")
    return text.strip()
