"""Keep what Lightning says about itself out of a run's output."""

import logging
import warnings

from lightning.pytorch.utilities.warnings import PossibleUserWarning

CHATTER = (
    *("💡 Tip", "GPU available", "TPU available", "HPU available", "Seed set to", "`Trainer.fit` stopped"),
    *("Restoring states", "Restored all states", "Loaded model weights", "Initializing distributed", "-----"),
    *("distributed_backend=", "LOCAL_RANK"),
)


def quiet() -> None:
    """Drop advertisements, deprecations in other people's code and reports of what was asked for.

    Warnings and messages about the run itself are kept. This is for a process that is the command line, since the
    filters hold for the whole of it.
    """
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_news)
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category)
    warnings.filterwarnings("ignore", ".*is deprecated", module="lightning|torch")
    warnings.filterwarnings("ignore", category=PossibleUserWarning)  # how many workers might be faster, and the like
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # a run that goes on in it


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().strip().startswith(CHATTER)
