"""What evaluate has measured so far, on disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Results:
    """What has been measured, on disk as soon as it is known."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.file = folder / "report.json"
        self.content: dict[str, Any] = {"settings": settings, "encoders": {}}
        if self.file.is_file():
            self.content = json.loads(self.file.read_text(encoding="utf-8"))
            saved = self.content["settings"]
            differing = [name for name in settings if saved.get(name, settings[name]) != settings[name]]
            if differing:
                raise ValueError(
                    f"--out {folder} holds a report with other {' and '.join(differing)}; pass another folder, or the "
                    "same data and settings to go on with it"
                )
            saved |= settings

    def begin(self, name: str, path: str | None, weights: str) -> None:
        """Keep what is known of an encoder, unless its weights were others."""
        entry = self.content["encoders"].get(name, {})
        if entry.get("weights") != weights:
            entry = {"weights": weights, "results": {}}
        self.content["encoders"][name] = entry | {"path": path}

    def measure(self, name: str, compute: Callable[[], Any], *axis: str) -> None:
        """Compute a result that is not known yet, and write it."""
        place = self.content["encoders"][name]["results"]
        for key in axis[:-1]:
            place = place.setdefault(key, {})
        if axis[-1] not in place:
            print(f"{name}: {' '.join(axis)}", flush=True)
            place[axis[-1]] = compute()
            self.write()

    def write(self) -> None:
        """Write everything, in one go."""
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.file.with_suffix(".part")
        unfinished.write_text(json.dumps(self.content, indent=1), encoding="utf-8")
        unfinished.replace(self.file)
