"""The command ``sslmodules``. What a subcommand needs is imported when it is called, so that help is there at once."""

import difflib
import importlib
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, NoReturn

import sslmodules
from sslmodules.signals import StopSignals


class Command(NamedTuple):
    """Where a subcommand is implemented, as ``function(name, args)``, and one line about it."""

    module: str
    function: str
    summary: str


COMMANDS = {
    "fit": Command("lightning", "run", "train a method, or a classifier on a trained encoder"),
    "validate": Command("lightning", "run", "measure a checkpoint on validation data"),
    "test": Command("lightning", "run", "measure a checkpoint on test data"),
    "predict": Command("lightning", "run", "write embeddings, classes or pictures of new data"),
    "evaluate": Command(
        "evaluate", "run", "compare encoders by probes, few labels, corruptions and transfer, in a report"
    ),
    "compare": Command("compare", "run", "print one table of the results of several runs"),
    "attention": Command("functions", "attention", "draw what an encoder attends to in a folder of pictures"),
    "pictures": Command("functions", "pictures", "draw what a trained method makes of a folder of pictures"),
    "propagate": Command("functions", "propagate", "follow objects through a video from the mask of its first frame"),
}


def main(args: list[str] | None = None) -> None:
    """Run the command line; ``sslmodules fit`` alone runs SimCLR on scikit-learn's digits.

    Args:
        args: what follows the command's name; None takes ``sys.argv``.
    """
    given = sys.argv[1:] if args is None else args
    if not given or given[0] in ("-h", "--help", "help"):
        print(_help(), file=sys.stdout if given else sys.stderr)
        sys.exit(0 if given else 2)
    if given[0] == "--version":
        print(f"sslmodules {sslmodules.__version__}")
        sys.exit(0)
    name, *rest = given
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected {', '.join(COMMANDS)}"
        exit_with(f"there is no command {name!r}; {hint}", status=2)
    command = COMMANDS[name]
    try:
        with StopSignals():
            getattr(importlib.import_module(f"sslmodules.cli.{command.module}"), command.function)(name, rest)
    except Exception as error:
        sentence = _own_sentence(error)
        if sentence is None:
            raise
        exit_with(sentence)


def exit_with(sentence: str, status: int = 1) -> NoReturn:
    """Print one sentence on stderr and leave."""
    print(f"sslmodules: error: {sentence}", file=sys.stderr)
    sys.exit(status)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: sslmodules COMMAND [options]",
            "",
            "Self-supervised learning with PyTorch Lightning.",
            "",
            *lines,
            "",
            "sslmodules COMMAND --help lists the options of a command. sslmodules fit alone trains SimCLR on",
            "scikit-learn's digits, in under a minute on two CPU cores.",
        ]
    )


def _own_sentence(error: BaseException | None) -> str | None:
    """What an error says that this package raised about its input; None for any other error."""
    rooms = (find_spec(f"sslmodules{room}") for room in ("", ".callbacks", ".datamodules"))
    folders = tuple(str(Path(next(iter(r.submodule_search_locations or []))).resolve()) for r in rooms if r)
    while error is not None:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        ours = trace is not None and trace.tb_frame.f_code.co_filename.startswith(folders)
        if ours and isinstance(error, (ValueError, OSError, ImportError)):
            return str(error)
        error = error.__cause__ or error.__context__
    return None
