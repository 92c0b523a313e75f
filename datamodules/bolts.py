"""DataModules of lightning-bolts, made for another generation of Lightning, for today's Trainer."""

from typing import Any

from lightning.pytorch import LightningDataModule

_OLD_STAGES = {"fit": "fit", "validate": "fit", "test": "test", "predict": "test"}


class BoltsDataModule(LightningDataModule):
    """A DataModule of `pytorch_lightning` 1.x, wrapped: every call goes to the one inside.

    Today's Trainer asks a DataModule for hooks that the old base class does not have (`no attribute 'on_exception'`).
    This one has them. The loaders are the wrapped module's own, so exact resume holds between epochs only.

    Args:
        wrapped: an object with the methods of a LightningDataModule; neither of the two old packages is imported here.

    Raises:
        TypeError: if it has no `train_dataloader`, `val_dataloader`, `test_dataloader` or `predict_dataloader`.

    Example:
        >>> class Old:
        ...     num_classes = 10
        ...     def train_dataloader(self):
        ...         return [1, 2]
        >>> data = BoltsDataModule(Old())
        >>> data.num_classes, data.train_dataloader(), data.val_dataloader()
        (10, [1, 2], [])

    """

    def __init__(self, wrapped: Any) -> None:
        super().__init__()
        if not any(_defines(wrapped, f"{name}_dataloader") for name in ("train", "val", "test", "predict")):
            raise TypeError(f"expected a DataModule, got {type(wrapped).__name__} without any *_dataloader method")
        self.wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        """Attributes that Lightning does not know (`num_classes`, `dims`, ...) are the wrapped module's."""
        if name == "wrapped" or name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def prepare_data(self) -> None:
        """Call the wrapped module's."""
        if _defines(self.wrapped, "prepare_data"):
            self.wrapped.prepare_data()

    def setup(self, stage: str) -> None:
        """Call the wrapped module's; "validate" becomes "fit" and "predict" becomes "test", all that it knows."""
        self.wrapped.trainer = self.trainer
        if _defines(self.wrapped, "setup"):
            self.wrapped.setup(_OLD_STAGES[str(getattr(stage, "value", stage))])

    def teardown(self, stage: str) -> None:
        """Call the wrapped module's."""
        if _defines(self.wrapped, "teardown"):
            self.wrapped.teardown(_OLD_STAGES[str(getattr(stage, "value", stage))])

    def train_dataloader(self) -> Any:
        """The wrapped module's."""
        return self._loader("train")

    def val_dataloader(self) -> Any:
        """The wrapped module's, or an empty list, which Lightning skips."""
        return self._loader("val")

    def test_dataloader(self) -> Any:
        """The wrapped module's, or an empty list, which Lightning skips."""
        return self._loader("test")

    def predict_dataloader(self) -> Any:
        """The wrapped module's, or its test images."""
        return self._loader("predict") or self._loader("test")

    def _loader(self, name: str) -> Any:
        method = f"{name}_dataloader"
        return getattr(self.wrapped, method)() if _defines(self.wrapped, method) else []


def from_bolts(datamodule: Any) -> BoltsDataModule:
    """A lightning-bolts DataModule for today's Trainer.

    Args:
        datamodule: for example `pl_bolts.datamodules.CIFAR10DataModule("data")`.

    Example:
        >>> class Old:
        ...     def train_dataloader(self):
        ...         return [1, 2]
        >>> from_bolts(Old()).train_dataloader()
        [1, 2]

    """
    return BoltsDataModule(datamodule)


def _defines(wrapped: Any, name: str) -> bool:
    """Whether the wrapped class itself has the method, and not only Lightning's base class, where it is a stub."""
    method = getattr(type(wrapped), name, None)
    return method is not None and method.__module__.split(".")[0] not in ("pytorch_lightning", "lightning")
