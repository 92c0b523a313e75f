"""What the command line keeps to itself, and what it lets through."""

import logging
import warnings

from lightning.pytorch import seed_everything
from lightning.pytorch.utilities import rank_zero_info

from sslmodules.cli.quiet import quiet


def test_news_come_through_and_chatter_does_not(caplog):
    quiet("fit")
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    try:
        for said in (
            "💡 Tip: try this",
            "TPU available: False",
            "`Trainer.fit` stopped: `max_epochs=1` reached.",
            "news",
        ):
            rank_zero_info(said)
        seed_everything(0)
    finally:
        for logger in loggers:
            logger.removeHandler(caplog.handler)
    assert set(caplog.messages) == {"news"}
    with warnings.catch_warnings(record=True) as caught:
        quiet("fit")
        warnings.warn("this will go away", FutureWarning, stacklevel=1)
        warnings.warn("the learning rate is odd", UserWarning, stacklevel=1)
    assert [str(w.message) for w in caught] == ["the learning rate is odd"]
