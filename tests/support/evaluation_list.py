"""Every supervised evaluation once, with a tiny encoder and data that it can learn."""

from collections.abc import Callable
from functools import partial
from typing import Any

import runs
import torch
from method_list import TINY, VIT
from torch.utils.data import DataLoader, Dataset, TensorDataset

from sslmodules import Detection, FineTune, LinearProbe, SemanticSegmentation
from sslmodules.evaluation import Evaluation


def masked(count: int, seed: int = 0) -> TensorDataset:
    """Images and masks (16, 16): class 1 where it is bright, 255 in the first rows of every third image."""
    images = runs.images(count, seed=seed)[:][0]
    masks = (images[:, 0] > 90).long()
    masks[::3, :5] = 255
    return TensorDataset(images, masks)


def boxed(count: int, seed: int = 0) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """Dark images (3, 32, 32), each with up to two bright squares, and their boxes."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(count):
        image = torch.randint(0, 60, (3, 32, 32), generator=generator)
        corners = torch.randint(0, 18, (i % 3, 2), generator=generator)
        for x, y in corners.tolist():
            image[:, y : y + 12, x : x + 12] += 150
        target = {"boxes": torch.cat([corners, corners + 12], 1).float(), "labels": torch.zeros(i % 3).long()}
        found.append((image.to(torch.uint8), target))
    return found


def batches(data: Dataset, batch_size: int, **kwargs: Any) -> DataLoader:
    """Loader of any of these data; boxes come as a list of images and a list of mappings."""
    if isinstance(data, list):
        kwargs["collate_fn"] = lambda items: tuple(map(list, zip(*items, strict=True)))
    return DataLoader(data, batch_size, **kwargs)


DETECTOR = {"min_size": 32, "max_size": 32, "width": 8, "detector_args": {"rpn_post_nms_top_n_test": 50}}

EVALUATIONS: dict[str, tuple[Callable[..., Evaluation], Callable[..., Any]]] = {
    "LinearProbe": (partial(LinearProbe, **TINY, num_classes=4, learning_rates=(0.1, 1.0)), runs.images),
    "LinearProbe.vit": (partial(LinearProbe, **VIT, num_classes=4, stages=[0, 1], tokens="both"), runs.images),
    "FineTune": (partial(FineTune, **TINY, num_classes=4, warmup_epochs=0), runs.images),
    "FineTune.vit": (partial(FineTune, **VIT, num_classes=4, blocks=1, warmup_epochs=0), runs.images),
    "FineTune pooled": (partial(FineTune, **VIT, num_classes=4, global_pool=True, warmup_epochs=0), runs.images),
    "SemanticSegmentation": (partial(SemanticSegmentation, **TINY, num_classes=2, train_encoder=True), masked),
    "SemanticSegmentation.vit": (partial(SemanticSegmentation, **VIT, num_classes=2, train_encoder=True), masked),
    "Detection": (partial(Detection, **TINY, **DETECTOR, num_classes=1, train_encoder=True), boxed),
}
