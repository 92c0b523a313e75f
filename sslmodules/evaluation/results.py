"""What evaluate has measured so far, on disk, where several processes add to it."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any

from sslmodules.evaluation.files import locked
from sslmodules.storage import atomic_path


class Results:
    """What has been measured, on disk as soon as it is known, together with what other processes measure meanwhile.

    Args:
        folder: that holds ``report.json``, or will.
        settings: on which all results depend.

    Raises:
        ValueError: the folder holds a report with other settings, or a ``report.json`` that is none.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.file = folder / "report.json"
        self.content: dict[str, Any] = {"settings": {}, "encoders": {}}
        self._weights: dict[str, str] = {}  # of the encoders that this process measures
        with self.changing() as content:
            saved = content["settings"]
            differing = [name for name in settings if saved.get(name, settings[name]) != settings[name]]
            if differing:
                raise ValueError(
                    f"--out {folder} holds a report with other {' and '.join(differing)}; pass another folder, or the "
                    "same data and settings to go on with it"
                )
            saved |= settings

    @contextmanager
    def changing(self) -> Iterator[dict[str, Any]]:
        """Give what is on disk, to be changed while no other process does; it is written at the end."""
        with locked(self.file):
            content = self._read()
            yield content
            with atomic_path(self.file) as part:
                part.write_text(json.dumps(content, indent=1), encoding="utf-8")
            self.content = content

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
            for entry in (content["settings"], *content["encoders"].values()):
                entry.items()  # mappings all
        except FileNotFoundError:
            return self.content
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{self.file} is not a report of evaluate ({type(error).__name__}: {error}); remove it, and the "
                "features beside it are used again, or pass another --out"
            ) from error
        return content

    def begin(self, name: str, path: str | None, weights: str, longer_name: str | None = None) -> str:
        """Keep what is known of an encoder with these weights, and return its name in the report.

        That is the name under which the report has it already, else ``name``, or ``longer_name`` where another encoder
        is called so, with a number behind it where that is taken too. Of the same file with other weights, trained on
        since, nothing is kept.
        """
        with self.changing() as content:
            encoders = content["encoders"]
            of_file = [k for k, e in encoders.items() if k not in self._weights and _same(e["path"], path)]
            found = next((k for k in of_file if encoders[k]["weights"] == weights), None)
            if found is None:
                trained_on = of_file if path else []  # encoders without a file are others
                longer = longer_name or name
                names = chain([name, longer], (f"{longer} {number}" for number in count(2)))
                found = next(k for k in names if k not in encoders or k in trained_on)
                encoders[found] = {"weights": weights, "results": {}, "path": path}
            self._weights[found] = weights
        return found

    def measure(self, name: str, compute: Callable[[], Any], *axis: str) -> None:
        """Compute a result that is not known yet, and write it."""
        with self.changing() as content:  # so that what another process has measured is not computed again
            known = axis[-1] in self._place(content, name, axis)
        if not known:
            print(f"{name}: {' '.join(axis)}", flush=True)
            value = compute()
            with self.changing() as content:
                self._place(content, name, axis)[axis[-1]] = value

    def _place(self, content: dict[str, Any], name: str, axis: Sequence[str]) -> dict[str, Any]:
        """The mapping that a result stands in."""
        entry = content["encoders"].setdefault(name, self.content["encoders"][name])  # if somebody removed the report
        if entry["weights"] != self._weights[name]:
            raise ValueError(
                f"{name} has been trained on, and another evaluate is measuring its new weights in {self.folder}; "
                "start this one again to have the same"
            )
        place = entry["results"]
        for key in axis[:-1]:
            place = place.setdefault(key, {})
        return place

    def finish(self, render: Callable[[dict[str, Any]], Mapping[str, str]]) -> list[Path]:
        """Write files made of all results, of those that come from checkpoints first, and return their paths.

        Args:
            render: what ``report.json`` holds -> text of each file, by its name.
        """
        with self.changing() as content:
            entries = sorted(content["encoders"].items(), key=lambda item: item[1]["path"] is None)
            content["encoders"] = dict(entries)
            files = {self.folder / name: text for name, text in render(content).items()}
            for file, text in files.items():
                with atomic_path(file) as part:
                    part.write_text(text, encoding="utf-8")
        return list(files)


def _same(a: str | None, b: str | None) -> bool:
    return a == b or (a is not None and b is not None and os.path.realpath(a) == os.path.realpath(b))
