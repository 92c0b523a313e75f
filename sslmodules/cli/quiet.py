"""Keep what Lightning says about itself out of a run's output."""

import logging
import re
import warnings

from lightning.pytorch.utilities.warnings import PossibleUserWarning

CHATTER = (
    *("💡 Tip", "GPU available", "TPU available", "HPU available", "Seed set to", "`Trainer.fit` stopped"),
    *("Restoring states", "Restored all states", "Loaded model weights", "Initializing distributed", "-----"),
    *("distributed_backend=", "LOCAL_RANK"),
)


def quiet(command: str) -> None:
    """Drop advertisements, deprecations in other people's code and reports of what was asked for.

    Warnings and messages about the run itself are kept. This is for a process that is the command line, since the
    filters hold for the whole of it.

    Args:
        command: such as ``"fit"``.
    """
    for name in ("pytorch.utilities.rank_zero", "fabric.utilities.seed", "fabric.utilities.distributed"):
        logging.getLogger(f"lightning.{name}").addFilter(_is_news)
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category)
    warnings.filterwarnings("ignore", ".*is deprecated", module="lightning|torch")
    warnings.filterwarnings("ignore", category=PossibleUserWarning)  # how many workers might be faster, and the like
    # A run that goes on, in its folder or in one of its own; and one without validation.
    expected = ["Checkpoint directory .* exists and is not empty", "The dirpath has changed", "Total length of `list`"]
    if command != "fit":  # callbacks of the training that the checkpoint is of
        expected.append("Be aware that when using `ckpt_path`, callbacks used to create the checkpoint")
    for said in expected:
        warnings.filterwarnings("ignore", said)


def _is_news(record: logging.LogRecord) -> bool:
    said = re.sub(r"^\[rank: \d+\] ", "", record.getMessage().strip())
    return not said.startswith(CHATTER)
