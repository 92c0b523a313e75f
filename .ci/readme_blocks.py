"""Run every code block of README.md in a folder of its own, with pictures in ``photos``; print and stop at a failure.

Usage: python .ci/readme_blocks.py, in an environment where the package is installed.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
# The two that install are run by .ci/run itself; what follows their && is run here.
SHORTENED = {"pip install . && ": "", 'pip install ".[test]" && pytest': "true"}
# The commands on one's own photos default to ResNet-50 and 100 epochs: the same lines, made short for two cores.
SHORT = " --trainer.max_steps 2 --data.batch_size 8"
APPENDED = {
    "sslmodules fit --model MoCo": SHORT + " --model.encoder resnet18",
    "sslmodules fit --model Colorization": SHORT + " --model.encoder resnet18",
    "sslmodules fit --model LinearProbe": SHORT,
}


def photos(folder: Path) -> None:
    """Twenty small pictures in a nested folder, and three grey ones in another."""
    rng = np.random.default_rng(0)
    for i in range(20):
        path = folder / "photos" / str(i % 3) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    (folder / "grey").mkdir()
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 48), dtype=np.uint8)).save(folder / "grey" / f"{i}.jpg")


def main() -> None:
    """Run the blocks in their order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos(folder)
        for language, code in re.findall(r"```(bash|python)\n(.*?)```", text, re.DOTALL):
            if language == "bash":
                for long, short in SHORTENED.items():
                    code = code.replace(long, short)
                lines = [
                    line + next((a for k, a in APPENDED.items() if line.startswith(k)), "")
                    for line in code.splitlines()
                ]
                command = ["bash", "-ec", "\n".join(lines)]
            else:
                command = [sys.executable, "-c", code]
            print(f"--- {language}\n{code}", flush=True)
            subprocess.run(command, cwd=folder, check=True)
    print("every block of README.md ran")


if __name__ == "__main__":
    main()
