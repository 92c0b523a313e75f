"""Commands that are a function of the package: its arguments are the command's options."""

from collections.abc import Callable
from typing import Any

from sslmodules.cli.parser import call, function_parser
from sslmodules.evaluation.attention_command import write_attention
from sslmodules.evaluation.propagate_command import propagate_masks


def attention(name: str, args: list[str]) -> None:
    """Run ``sslmodules attention``."""
    run(write_attention, name, args)


def propagate(name: str, args: list[str]) -> None:
    """Run ``sslmodules propagate``."""
    run(propagate_masks, name, args)


def run(function: Callable[..., Any], name: str, args: list[str]) -> None:
    """Run a command whose options are the arguments of a function."""
    parser = function_parser(name, function)
    parser.add_function_arguments(function, as_positional=False)
    call(function, parser, args)
