"""Every block of README.md, in its order, in one folder with a person's data."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from flowers import flowers
from PIL import Image

README = Path(__file__).resolve().parents[2] / "README.md"
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
INSTALLS = ("pip install . && ", 'pip install ".[test]" && pytest')  # done before these tests
# Runs of an hour are cut short: the same lines, and these.
SHORT = ["--trainer.max_steps", "2", "--data.batch_size", "8", "--model.encoder", "resnet18"]
SHORTENED = {"--model MoCo": SHORT, "--model Colorization": SHORT, "--model LinearProbe": SHORT[:4]}


@pytest.fixture(scope="module")
def owner(newcomer):
    """Somebody with photographs, some of them grey."""
    flowers(newcomer.folder / "photos", 24)
    (newcomer.folder / "grey").mkdir()
    for file in (newcomer.folder / "photos" / "rose").iterdir():
        Image.open(file).convert("L").save(newcomer.folder / "grey" / file.name)
    return newcomer


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_every_block_runs(owner, number):
    language, text = BLOCKS[number]
    if language == "python":
        owner.run(code=text)
        return
    for words in INSTALLS:
        text = text.replace(words, "")
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            assert words[0] == "sslmodules", line
            owner.run(
                *words[1:],
                *next((more for start, more in SHORTENED.items() if line.endswith(start) or f"{start} " in line), []),
            )


def test_the_pictures_that_it_shows_are_there():
    for file in re.findall(r"!\[.*?\]\((.*?)\)", README.read_text(encoding="utf-8")):
        with Image.open(README.parent / file) as picture:
            assert np.asarray(picture).std() > 1
