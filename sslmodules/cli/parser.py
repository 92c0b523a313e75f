"""Parsers whose help fits a screen or two and whose errors are one line with the nearest name."""

import argparse
import difflib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from jsonargparse._actions import _ActionConfigLoad
from jsonargparse._formatters import DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser

from sslmodules.cli import exit_with

# Options of Lightning that a first look should show; the others are listed by `--help all`.
COMMON = {
    "": ["ckpt_path", "seed_everything"],
    "trainer": [
        *("accelerator", "devices", "precision", "max_epochs", "max_steps", "max_time", "accumulate_grad_batches"),
        *("check_val_every_n_epoch", "limit_train_batches", "limit_val_batches", "default_root_dir", "fast_dev_run"),
    ],
    "checkpoint": ["dirpath", "filename", "monitor", "mode", "save_top_k"],
    "last_checkpoint": ["train_time_interval"],
}
WRITERS = ("boxes", "embeddings", "masks", "predicted", "predictions", "projector")  # callbacks of `predict` alone
SUBCLASSES = re.compile(r",\s*known\s+subclasses:.*(?=\))", re.DOTALL)


class ShortFormatter(DefaultHelpFormatter):
    """Help without the lists of known subclasses: of ``nn.Module`` there are some hundreds."""

    def _expand_help(self, action: argparse.Action) -> str:
        return SUBCLASSES.sub("", super()._expand_help(action) or "")


class OneLineErrors(ArgumentParser):
    """A parser that says in one line what was wrong, and which option was perhaps meant."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": ShortFormatter, "allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the sentence and leave with status 2."""
        if not self.exit_on_error:  # the parser of a class within another
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        exit_with(sentence(message, option_names(parser)), status=2)


def function_parser(name: str, function: Callable[..., Any]) -> OneLineErrors:
    """Build the parser of a command that is a function, ``--config`` and ``--print_config`` included.

    No subclass with a signature of its own: jsonargparse makes parsers of this one's class for what is nested.
    """
    summary = inspect.getdoc(function) or ""
    parser = OneLineErrors(prog=f"sslmodules {name}", description=summary.split("\n\nArgs:")[0])
    parser.add_argument("--config", action="config", help="YAML file with values of these options")
    return parser


class TrainerParser(OneLineErrors, LightningArgumentParser):
    """Parser of the commands that a Trainer runs; help shows what a first run needs, ``--help all`` the rest."""

    show_all = False
    command = "fit"

    def format_help(self, formatter: Any = None) -> str:
        """Return the short help, or with ``--help all`` everything; of a class its own arguments."""
        if "--data" not in self._option_string_actions:
            return re.sub("^usage: .*?\n\n", "", super().format_help(formatter), flags=re.DOTALL)
        return super().format_help(formatter) if self.show_all else self._short_help()

    def _short_help(self) -> str:
        lines = [
            f"usage: sslmodules {self.command} [--config FILE] [--model NAME] [--data NAME] [options]",
            "",
            f"  --model NAME              {_listed('model')}",
            "  --model.OPTION VALUE      an option of the method; --model.help NAME lists them",
            f"  --data NAME               {_listed('data')}",
            "  --data.OPTION VALUE       an option of the data; --data.help NAME lists them",
            *(["  --preset NAME             recipe of the method: tiny, small or paper"] * (self.command == "fit")),
            "  --config FILE             YAML with values of these options, or a recipe of the package by its name",
            "  --print_config            print the configuration that the other options give, and leave",
        ]
        groups: dict[str, list[argparse.Action]] = {}
        for action in self._actions:
            if action.dest.endswith(".help") or not action.option_strings or isinstance(action, _ActionConfigLoad):
                continue
            group, _, name = action.dest.rpartition(".")
            serves = group in ("", "trainer") or (group in WRITERS) == (self.command == "predict")
            if serves and name in COMMON.get(group, [name]):
                groups.setdefault(group, []).append(action)
        for group, actions in sorted(groups.items()):
            lines += ["", *([f"{group}:"] if group else []), *(self._line(action) for action in actions)]
        lines += ["", f"sslmodules {self.command} --help all lists every option of the Trainer and the callbacks."]
        return "\n".join(lines) + "\n"

    def _line(self, action: argparse.Action) -> str:
        about = (action.help or "").replace("``", "").split(". ")[0].split("; ")[0].strip().rstrip(".:")
        default = "" if action.default in (None, argparse.SUPPRESS) else f" (default: {action.default})"
        text = textwrap.shorten(" ".join(about.split()).replace("%%", "%"), 88 - len(default), placeholder=" ...")
        return f"  {'--' + action.dest:37} {text}{default}"


def _listed(kind: str) -> str:
    from sslmodules.cli.arguments import names_of

    names = textwrap.fill(", ".join(names_of(kind)), 90).split("\n")
    return ("\n" + " " * 28).join(names)


def option_names(parser: ArgumentParser) -> list[str]:
    """The long options of a parser."""
    return [option for option in parser._option_string_actions if option.startswith("--")]


def sentence(message: str, options: list[str]) -> str:
    """Distill jsonargparse's account of a failed validation into one line.

    >>> sentence("unrecognized arguments: --trainer.max_epoch 3", ["--trainer.max_epochs"])
    'there is no option --trainer.max_epoch; did you mean --trainer.max_epochs?'
    """
    unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
    if unknown:
        return f"there is no option {unknown[1]}{nearest(unknown[1], options)}"
    missing = re.match(r"the following arguments are required: (.*)", message)
    if missing:
        return f"there is no {' and no '.join(f'--{name}' for name in missing[1].split(', '))}; it is required"
    keys = re.findall(r'Parser key "([^"]+)"', message)
    option = "--" + ".".join(keys)
    holder = re.findall(r"Problem with given class_path '([^']+)'", message)
    refused = re.search(r"Option '([^']+)' is not accepted", message)
    if refused and holder:
        names = [f"{option}.{name}" for name in init_arguments(holder[-1])]
        kind, unknown_name = holder[-1].rsplit(".", 1)[-1], f"{option}.{refused[1]}"
        return f"{kind} has no option {unknown_name}{nearest(unknown_name, names)}"
    refused = re.search(r"Key '([^']+)' is not expected", message)
    if refused:
        return f"there is no option --{refused[1]}{nearest(f'--{refused[1]}', options)}"
    value = re.findall(r"(?:Got value|Given value): (.*)", message)
    expected = list(dict.fromkeys(_kinds(message)))
    if keys and value and expected and not value[0].startswith(("NestedArg", "{")):
        return f"{option} is {value[0].strip()!r}, expected {' or '.join(expected)}"
    plain = " ".join(message.split())
    return re.sub(r'^Parser key "([^"]+)":', r"--\1:", plain)


def nearest(name: str, names: list[str]) -> str:
    """A question for the nearest of some names, or nothing; those of the same group are compared by what differs."""
    group = name[: name.rfind(".") + 1]
    beside = {n.removeprefix(group): n for n in names if n.startswith(group)}
    near = difflib.get_close_matches(name.removeprefix(group), beside, n=1)
    return f"; did you mean {beside[near[0]]}?" if near else ""


def init_arguments(path: str) -> Iterator[str]:
    """Names of the arguments that a class takes, those of its bases included."""
    module, _, name = path.rpartition(".")
    cls = getattr(sys.modules.get(module), name, None)
    for base in getattr(cls, "__mro__", ()):
        yield from (n for n, p in inspect.signature(base).parameters.items() if p.kind is not p.VAR_KEYWORD)


def _kinds(message: str) -> Iterator[str]:
    """The types and values that jsonargparse says it expected."""
    for kind in re.findall(r"Expected (?:a |an )?(.+?)(?:\. Got value|$)", message, re.MULTILINE):
        choices = re.match(r"typing\.Literal\[(.*)\]", kind)
        plain = re.match(r"<class '(?:\w+\.)*(\w+)'>", kind)
        yield choices[1].replace("'", "") if choices else plain[1].replace("NoneType", "null") if plain else kind
