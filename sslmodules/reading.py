"""Reading files of weights: tensors and plain values alone, and one sentence that says what any other file is."""

import argparse
import codecs
import re
import stat
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

# Plain values that training scripts save beside the weights (DINO's and MAE's `args`, rates out of NumPy).
SAFE: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
    np.dtypes.Int64DType,
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
]


def read_weights(path: str | Path, ignore_objects: bool = False) -> Mapping[str, Any]:
    """Read a file that PyTorch or safetensors wrote, without running any code that it holds.

    Args:
        path: the file. Tensors of PyTorch's present format stay on disk until they are used.
        ignore_objects: put an empty dict in the place of each object that is no tensor or plain value; otherwise a file
            with such objects is refused.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder, a file that may not be read, is empty, cut off, of another kind or has objects in it.
    """
    head = _head(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:  # safetensors: length of a JSON header, header
        try:
            return safetensors.torch.load_file(path)
        except Exception as error:
            raise ValueError(f"{path} is a damaged safetensors file ({_one_line(error)})") from error
    zipped = zipfile.is_zipfile(path)  # since PyTorch 1.6
    _check_kind(path, head, zipped)
    unsafe: list[str] = []
    try:
        if zipped:
            with _allowed(SAFE):
                unsafe = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        ignored = [(_Ignored, name) for name in unsafe if ignore_objects]
        with _allowed([*SAFE, *ignored]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # torch.load has many ways to fail
        named = unsafe or re.findall(r"GLOBAL (\S+) (?:was|whose)", str(error))  # PyTorch's words, for the older format
        if named and (not (unsafe and ignore_objects) or "is blocked" in str(error)):
            todo = "pass ignore_objects=True to read its tensors without them" if unsafe else "save its tensors alone"
            raise ValueError(
                f"{path} holds objects besides tensors and plain values ({some(named)}), and reading those can run "
                f"code; {'do not trust it' if 'is blocked' in str(error) else todo}"
            ) from error
        if not zipped and (isinstance(error, (EOFError, IndexError)) or "unexpected EOF" in str(error)):
            raise ValueError(_cut_off(path)) from error
        if not zipped:
            raise ValueError(
                f"{path} is a pickle of something else than tensors and plain values, and reading it could run code; "
                "it was not read"
            ) from error
        raise ValueError(f"{path} cannot be read as tensors and plain values: {_one_line(error)}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a state dict or a dict with one")
    return content


def misfit(state: Mapping[str, Any], own: Mapping[str, Tensor]) -> str:
    """Say how a state dict differs from a module's own, in names and shapes; empty where it fits.

    >>> misfit({"a": torch.zeros(2), "b": torch.zeros(1)}, {"a": torch.zeros(3)})
    'it has b besides; a is (2,) in it, expected (3,)'
    """
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} is {tuple(state[name].shape)} in it, expected {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if isinstance(tensor, Tensor) and name in state and state[name].shape != tensor.shape
    ]
    problems = [f"it lacks {some(missing, 2)}"] * bool(missing)
    problems += [f"it has {some(unexpected, 2)} besides"] * bool(unexpected)
    problems += [some(shapes, 2)] * bool(shapes)
    return "; ".join(problems)


def some(names: Iterable[str], most: int = 5) -> str:
    """Join the first names, and say how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class _Ignored:
    """Stands in for a class that is not imported: whatever is made of it is an empty dict."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


def _allowed(names: list[Any]) -> AbstractContextManager[Any]:
    """PyTorch's context, which on leaving would forget what was allowed before, too."""
    return torch.serialization.safe_globals([n for n in names if n not in torch.serialization.get_safe_globals()])


def _head(path: str | Path) -> bytes:
    """The first bytes of a file; opening a FIFO would wait for a writer."""
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            files = sorted(str(file) for file in Path(path).rglob("*.ckpt"))
            raise ValueError(f"{path} is a folder; pass a file" + (f", such as {files[0]}" if files else ""))
        if not stat.S_ISREG(mode):
            raise ValueError(f"{path} is neither a file nor a folder; pass a file")
        with Path(path).open("rb") as file:
            head = file.read(512)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"{path}: there is no such file") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if not head:
        raise ValueError(f"{path} is empty, as after a full disk or an interrupted copy; pass another one")
    return head


def _check_kind(path: str | Path, head: bytes, zipped: bool) -> None:
    """Refuse what is neither an archive of PyTorch nor, as before PyTorch 1.6, a pickle."""
    if zipped:
        with zipfile.ZipFile(path) as archive:
            if not any(name.endswith("data.pkl") for name in archive.namelist()):
                raise ValueError(f"{path} is a zip archive and no checkpoint of PyTorch")
        return
    if head.startswith(b"PK\x03\x04"):  # whose table of contents is at the end
        raise ValueError(_cut_off(path))
    if head.startswith(b"\x80"):
        return
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(head)
    if all(character.isprintable() or character.isspace() for character in text.replace("\ufffd", "\0")):
        raise ValueError(f"{path} is a text file that begins with {text.splitlines()[0][:60]!r}, expected a checkpoint")
    raise ValueError(
        f"{path} cannot be read as tensors and plain values: it begins with {head[:8]!r}, and neither PyTorch nor "
        "safetensors writes such files"
    )


def _cut_off(path: str | Path) -> str:
    size = Path(path).stat().st_size
    return f"{path} is cut off after {size:,} bytes, as by a full disk or an interrupted copy; pass another one"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
