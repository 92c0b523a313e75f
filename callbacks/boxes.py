"""Detected objects as COCO's results, from ``predict``."""

import json
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule

from sslmodules.callbacks.rows import Rows, RowWriter
from sslmodules.datamodules.pictures import picture_size
from sslmodules.storage import atomic_path


class BoxWriter(RowWriter):
    """Write the ``"boxes"`` that ``predict`` gives into a JSON file in the form of COCO's results; nothing without.

    The file is a list of ``{"image_id", "file_name", "category_id", "category", "bbox", "score"}``: ``image_id`` is the
    place of the picture in the data, ``category_id`` the number of the class, both from 0, and ``bbox`` is x, y, width,
    height in pixels of the picture that was read (upright). ``file_name`` is missing where it is not known, as is
    ``category``.

    Args:
        path: file to write.

    Raises:
        StorageError: after the first batch, a path that cannot be written.

    >>> from lightning.pytorch import Trainer
    >>> trainer = Trainer(callbacks=[BoxWriter("boxes.json")], logger=False)
    """

    def __init__(self, path: str = "boxes.json") -> None:
        super().__init__(path)

    def keep(self, prediction: Mapping[str, Any], batch: Any, pl_module: LightningModule) -> dict[str, Any] | None:
        """Return what was found in each picture, and the size at which it was seen."""
        if "boxes" not in prediction:
            return None
        found = [{name: value.cpu() for name, value in one.items()} for one in prediction["boxes"]]
        return {"found": found, "sizes": prediction["sizes"]}

    def write(self, rows: Rows, files: list[str] | None, pl_module: LightningModule) -> None:
        """Write the file, and say where it is."""
        names = getattr(pl_module, "class_names", None)
        results = []
        each = zip(rows.places.tolist(), rows.columns["found"], rows.columns["sizes"].tolist(), strict=True)
        for row, (place, found, seen) in enumerate(each):
            height, width = seen if files is None else picture_size(files[row])
            image = {"image_id": place} | ({} if files is None else {"file_name": files[row]})
            down, across = height / seen[0], width / seen[1]
            values = zip(found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True)
            for (x0, y0, x1, y1), label, score in values:
                bbox = [across * x0, down * y0, across * (x1 - x0), down * (y1 - y0)]
                kind = {"category_id": label} | ({"category": names[label]} if names else {})
                results.append(image | kind | {"bbox": [round(v, 2) for v in bbox], "score": round(score, 5)})
        with atomic_path(self.path) as path:
            path.write_text(json.dumps(results))
        print(f"{len(results)} boxes in {len(rows.places)} pictures in {self.path}")
