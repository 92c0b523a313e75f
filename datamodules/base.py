"""DataModules around any map-style dataset: exact order, sensible loaders, label fractions."""

import os
import signal
import sys
import threading
from typing import Any, ClassVar, Literal

import torch
from lightning.fabric.utilities.seed import pl_worker_init_function
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from sslmodules.datamodules.images import ImageSet, PairedSet, as_it_is
from sslmodules.datamodules.labels import keep_labels, labels_of
from sslmodules.datamodules.sampler import ResumableLoader, ResumableSampler

STAGES = {"fit": ("train", "labeled", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


class ImageDataModule(LightningDataModule):
    """Loaders over the splits that a subclass returns from `load`: train, labeled, val, test, predict.

    Training batches come shuffled from a loader that resumes exactly; if there is a split "labeled", its images ride
    along. The other loaders keep the dataset's order.

    Args:
        batch_size: images in a batch of one process; None: 256, or all if there are fewer.
        num_workers: None: 0 for images that lie in memory, else the processors of this process less one, at most 8.
        seed: of the order, and of whatever a subclass draws.
        drop_last: leave out an odd last training batch; None: unless over a fifth of an epoch would go with it.

    Attributes:
        classes: names of the classes, or None.
        num_classes: number of classes, or None.

    Example:
        >>> class Black(ImageDataModule):
        ...     def load(self, split):
        ...         return ImageSet(torch.zeros(10, 3, 8, 8, dtype=torch.uint8)) if split == "train" else None
        >>> next(iter(Black(batch_size=4).train_dataloader())).shape
        torch.Size([4, 3, 8, 8])

    """

    classes: list[str] | None = None
    default_batch_size: ClassVar[int] = 256
    draws: ClassVar[bool] = False  # whether what is read of a training item differs from epoch to epoch

    def __init__(
        self,
        batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        drop_last: bool | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = self.default_batch_size if batch_size is None else batch_size
        if self.batch_size < 1 or (num_workers or 0) < 0 or seed < 0:
            raise ValueError(
                "batch_size is at least 1, num_workers and seed are at least 0, "
                f"got batch_size={batch_size}, num_workers={num_workers}, seed={seed}"
            )
        self._batch_size_chosen = batch_size is not None
        self.num_workers = num_workers
        self.seed = seed
        self.drop_last = drop_last
        self._splits: dict[str, ImageSet | None] = {}
        self._said: set[str] = set()

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None where there are no labels."""
        return None if self.classes is None else len(self.classes)

    def load(self, split: str) -> ImageSet | None:
        """The images of one split, or None where there are none; called once a split."""
        raise NotImplementedError(f"{type(self).__name__} has no method load(split)")

    def split(self, name: str) -> ImageSet | None:
        """The images of one split, loaded when first asked for; "predict" is the first of test, val and train."""
        if name not in self._splits:
            images = self.load(name)
            if images is not None and len(images) == 0:
                raise ValueError(f"the {name} split of {type(self).__name__} holds no image: pass a dataset that does")
            if images is None and name == "predict":
                images = next((found for found in map(self.split, ("test", "val", "train")) if found is not None), None)
            self._splits[name] = images
        return self._splits[name]

    def setup(self, stage: str | None = None) -> None:
        """Load the splits of a stage; a second call changes nothing."""
        for name in STAGES.get(stage or "", sum(STAGES.values(), ())):
            self.split(name)

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches, this process's share.

        Raises:
            ValueError: if there are no images, or dropping an odd last batch would leave none.

        """
        images, labeled = self.split("train"), self.split("labeled")
        if images is None:
            raise ValueError(f"{type(self).__name__} has no training images")
        pairs = None if labeled is None else len(labeled)
        if self.draws:  # the sampler then yields (i, i + epoch · N), another number in every epoch
            pairs = sys.maxsize
        options: dict[str, Any] = {"seed": self.seed, "pairs": pairs}
        limit: int | float = 1.0
        if self.trainer is not None:
            # A checkpoint from the end of an epoch brings no loader state, only the count of epochs.
            options["epoch"] = self.trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
            options |= self.trainer.distributed_sampler_kwargs or {}
            limit = self.trainer.limit_train_batches or 1.0
        sampler = ResumableSampler(images, **options)
        batch_size, drop_last = self._training_batches(len(sampler))
        data = images if labeled is None else PairedSet(images, labeled, self.draws)
        return ResumableLoader(
            data,
            batch_size=batch_size,
            sampler=sampler,
            limit=limit,
            drop_last=drop_last,
            **self._loading(data),
        )

    def _training_batches(self, images: int) -> tuple[int, bool]:
        """Size of a training batch, and whether an odd last one is left out, for so many images of one process."""
        batch_size = self.batch_size
        if images < batch_size and not self._batch_size_chosen:
            batch_size = images
            self._say(f"a training batch holds all {images} images, fewer than the default of {self.batch_size}")
        elif images < batch_size and self.drop_last:
            raise ValueError(
                f"{images} training images for each process are fewer than batch_size={batch_size}, and "
                f"drop_last=True would leave no batch: pass batch_size={images} or less, or drop_last=False"
            )
        elif images < batch_size:
            self._say(
                f"{images} training images for each process are fewer than batch_size={batch_size}, for which learning "
                f"rates are scaled: pass batch_size={images} (--data.batch_size {images}) or less",
                warning=True,
            )
        if self.drop_last is not None:
            return batch_size, self.drop_last
        odd = images % batch_size
        return batch_size, images > batch_size and (odd == 1 or 5 * odd <= images)  # a single image has no statistics

    def _say(self, sentence: str, warning: bool = False) -> None:
        """Say something once, however often loaders are asked for."""
        if sentence not in self._said:
            self._said.add(sentence)
            (rank_zero_warn if warning else rank_zero_info)(sentence)

    def val_dataloader(self) -> Any:
        """Batches in the dataset's order; an empty list, which Lightning skips, where there is no such split."""
        return self._in_order("val") or []

    def test_dataloader(self) -> Any:
        """Batches in the dataset's order.

        Raises:
            ValueError: if there is no such split.

        """
        loader = self._in_order("test")
        if loader is None:
            raise ValueError(f"{type(self).__name__} has no test images: pass some, or call trainer.validate")
        return loader

    def predict_dataloader(self) -> Any:
        """Batches in the dataset's order: all images of the test split, or else of val, or else of train."""
        return self._in_order("predict")

    def _in_order(self, name: str, batch_size: int | None = None) -> DataLoader | None:
        images = self.split(name)
        if images is None:
            return None
        if self.trainer is not None and self.trainer.predicting and len(images) < self.trainer.world_size:
            raise ValueError(
                f"there are {self.trainer.world_size} processes and {len(images)} to predict on, and each needs one; "
                f"pass devices={len(images)} (--trainer.devices {len(images)})"
            )
        return DataLoader(images, batch_size=batch_size or self.batch_size, **self._loading(images))

    def _loading(self, data: ImageSet | PairedSet) -> dict[str, Any]:
        workers = self.num_workers
        if workers is None:
            here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            processes = 1 if self.trainer is None else self.trainer.num_devices
            workers = 0 if data.in_memory else max(0, min(8, here // processes - 1))
        return {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "collate_fn": as_it_is,
            "worker_init_fn": start_worker,
        }


def start_worker(number: int) -> None:
    """Let a worker of a loader survive what is sent to all processes of a job: it ends when its loader does.

    Ctrl-C in a terminal and the SIGTERM of a scheduler reach the workers too. Without them the process that trains
    could not do the batches that are left until it can stop. A SIGTERM of that process itself ends a worker at once,
    and so does a second one of others. Where Python does not tell who has sent a signal (macOS, Windows), each does.

    Args:
        number: of the worker, from 0.
    """
    if int(os.environ.get("PL_SEED_WORKERS", 0)):  # Lightning seeds only those workers that have no function like this
        pl_worker_init_function(number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_sigterm, args=(os.getppid(),), daemon=True).start()


def _wait_for_sigterm(parent: int) -> None:
    if signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        signal.sigwaitinfo({signal.SIGTERM})
    os._exit(0)  # a status that PyTorch takes for an end in good order


class UnlabeledDataModule(ImageDataModule):
    """Images to pretrain on, from any map-style dataset; labels that its items may have are dropped.

    Args:
        dataset: items as in `ImageSet`.
        val: held-out images; with labels they give an online probe something to measure.
        labeled: images with labels that ride along: batches are then mappings with "image", "labeled_image" and
            "labeled_label". Each epoch pairs image i with labeled image `(i + epoch * N) mod M`.
        batch_size: images in a batch of one process; None: 256, or all if there are fewer.
        num_workers: None: 0 for images that lie in memory, else the processors of this process less one, at most 8.
        seed: of the order.
        drop_last: leave out an odd last training batch; None: unless over a fifth of an epoch would go with it.

    Raises:
        ValueError: at once, for a dataset that can only be iterated over; from `train_dataloader`, if dropping the last
            batch leaves none; from `setup`, if a dataset is empty or `labeled` has no labels.

    Example:
        >>> data = UnlabeledDataModule(torch.zeros(10, 3, 8, 8, dtype=torch.uint8), batch_size=4)
        >>> [batch.shape[0] for batch in data.train_dataloader()]
        [4, 4]

    """

    def __init__(
        self,
        dataset: Dataset,
        val: Dataset | None = None,
        labeled: Dataset | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        drop_last: bool | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed, drop_last)
        self.save_hyperparameters(ignore=["dataset", "val", "labeled"], logger=False)
        self.datasets = {"train": dataset, "val": val, "labeled": labeled}
        require_map_style(dataset=dataset, val=val, labeled=labeled)
        self.classes = _classes(*self._with_labels())

    @property
    def num_classes(self) -> int | None:
        """Number of classes of `labeled`, or else of `val`; reads every label once if the dataset names none."""
        return _num_classes(self.classes, *self._with_labels())

    def load(self, split: str) -> ImageSet | None:
        """One of the datasets."""
        dataset = self.datasets.get(split)
        if dataset is None:
            return None
        if split == "labeled":
            _check_labeled(dataset, "labeled")
        return ImageSet(dataset, drop_labels=split == "train")

    def _with_labels(self) -> list[Any]:
        return [dataset for dataset in (self.datasets["labeled"], self.datasets["val"]) if dataset is not None]


class LabeledDataModule(ImageDataModule):
    """Images with labels, from any map-style dataset.

    Args:
        train: items as in `ImageSet`, with labels.
        val: held-out images.
        test: images for the last word.
        batch_size: images in a batch of one process; None: 256, or all if there are fewer.
        label_fraction: share of each class that keeps its labels in training, in (0, 1].
        unlabeled: what becomes of the others: "keep" them with label -1, or "drop" them.
        num_workers: None: 0 for images that lie in memory, else the processors of this process less one, at most 8.
        seed: of the order and of the labels that stay; a smaller fraction lies inside a larger.
        drop_last: leave out an odd last training batch; None: unless over a fifth of an epoch would go with it.

    Raises:
        ValueError: at once, for a dataset that can only be iterated over; from `setup`, if a dataset is empty or the
            training items have no labels; from `train_dataloader`, if dropping the last batch leaves none.

    Example:
        >>> items = [(torch.zeros(3, 8, 8, dtype=torch.uint8), label) for label in (0, 1) * 5]
        >>> data = LabeledDataModule(items, batch_size=10, label_fraction=0.2)
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> labels.bincount(minlength=2).tolist() if labels.min() >= 0 else (labels >= 0).sum().item()
        2

    """

    def __init__(
        self,
        train: Dataset,
        val: Dataset | None = None,
        test: Dataset | None = None,
        batch_size: int | None = None,
        label_fraction: float = 1.0,
        unlabeled: Literal["keep", "drop"] = "keep",
        num_workers: int | None = None,
        seed: int = 0,
        drop_last: bool | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed, drop_last)
        self.save_hyperparameters(ignore=["train", "val", "test"], logger=False)
        self.datasets = {"train": train, "val": val, "test": test}
        require_map_style(train=train, val=val, test=test)
        self.label_fraction = label_fraction
        self.unlabeled = unlabeled
        self.classes = _classes(train)

    @property
    def num_classes(self) -> int | None:
        """Number of classes; reads every label once if the training set names none."""
        return _num_classes(self.classes, self.datasets["train"])

    def load(self, split: str) -> ImageSet | None:
        """One of the datasets, the training set with its share of labels."""
        dataset: Any = self.datasets.get(split)
        if dataset is None:
            return None
        if split == "train":
            _check_labeled(dataset, "train")
        if split != "train" or self.label_fraction == 1:
            return ImageSet(dataset)
        everything = torch.arange(len(dataset))
        indices, labels = keep_labels(labels_of(dataset), everything, self.label_fraction, self.unlabeled, self.seed)
        return ImageSet(dataset, indices, labels)


def require_map_style(**datasets: Any) -> None:
    """Refuse datasets without a length or places, whose order can be neither drawn nor resumed.

    Args:
        datasets: by the name of the argument; None is left out.

    Raises:
        ValueError: with what to do instead.

    """
    for name, dataset in datasets.items():
        map_style = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        if dataset is not None and (isinstance(dataset, IterableDataset) or not map_style):
            raise ValueError(
                f"{name} is a {type(dataset).__name__}, which can only be iterated over, so that its order could be "
                "neither shuffled nor resumed: pass a dataset with __len__ and __getitem__, or give "
                "trainer.fit(method, DataLoader(...)) a loader of your own and the Trainer max_steps"
            )


def _check_labeled(dataset: Any, name: str) -> None:
    if len(dataset) and isinstance(ImageSet(dataset)[0], torch.Tensor):
        raise ValueError(
            f"the items of {name}= have no labels: they must be (image, label) or mappings with 'image' and 'label'; "
            "for images alone there is UnlabeledDataModule(dataset)"
        )


def _classes(*datasets: Any) -> list[str] | None:
    for dataset in datasets:
        while dataset is not None:
            if getattr(dataset, "classes", None):
                return [str(name) for name in dataset.classes]
            dataset = getattr(dataset, "dataset", None)  # a Subset, or another wrapper
    return None


def _num_classes(classes: list[str] | None, *datasets: Any) -> int | None:
    if classes is not None or not datasets:
        return None if classes is None else len(classes)
    return int(labels_of(datasets[0]).max()) + 1 or None
