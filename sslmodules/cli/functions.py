"""Commands that are a function of the package: its arguments are the command's options."""

from collections.abc import Callable
from typing import Any

from sslmodules.cli.going_on import with_paths
from sslmodules.cli.parser import function_parser
from sslmodules.distributed import works_alone
from sslmodules.evaluation.attention_command import write_attention
from sslmodules.evaluation.pictures_command import write_pictures
from sslmodules.evaluation.propagate_command import propagate_masks


def attention(name: str, args: list[str]) -> None:
    """Run ``sslmodules attention``."""
    call(write_attention, name, args)


def pictures(name: str, args: list[str]) -> None:
    """Run ``sslmodules pictures``."""
    call(write_pictures, name, args)


def propagate(name: str, args: list[str]) -> None:
    """Run ``sslmodules propagate``."""
    call(propagate_masks, name, args)


def call(function: Callable[..., Any], name: str, args: list[str]) -> None:
    """Call a function with its arguments from the command line or from ``--config``."""
    parser = function_parser(name, function)
    parser.add_function_arguments(function, as_positional=False)
    parsed = parser.parse_args(with_paths(args))
    parsed.pop("config")  # whose values are in place
    if works_alone(name):
        function(**parser.instantiate(parsed).as_dict())
