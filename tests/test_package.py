"""The built wheel in somebody else's project, and every example in the docstrings."""

import doctest
import importlib
import inspect
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sslmodules

ROOT = Path(__file__).parents[1]
MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(sslmodules.__path__[:1], "sslmodules.")
    if name != "sslmodules.__main__"
]
for part in ("callbacks", "datamodules"):
    package = importlib.import_module(f"sslmodules.{part}")
    MODULES += [f"sslmodules.{part}.{m.name}" for m in pkgutil.iter_modules(package.__path__)]
MODULES = sorted(set(MODULES))


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore")
def test_examples_in_docstrings_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_public_class_has_an_example():
    public = {}
    for name in ("", ".callbacks", ".datamodules", ".views", ".encoders"):
        module = importlib.import_module("sslmodules" + name)
        public |= {f"{module.__name__}.{n}": getattr(module, n) for n in module.__all__}
    classes = {n: c for n, c in public.items() if inspect.isclass(c)}
    assert len(classes) > 25
    assert [n for n, c in classes.items() if ">>>" not in (c.__doc__ or "")] == []


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the installed wheel, built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    parts = ["sslmodules", "callbacks", "datamodules", "configs", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"]
    for part in parts:
        source, target = ROOT / part, folder / "source" / part
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, folder / "source"]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", folder / "site", wheel]
    subprocess.run(install, check=True, capture_output=True)
    return folder / "site"


PROJECT = """
import callbacks, datamodules                     # the project's own
from callbacks.mine import Mine
from datamodules.data import Data
import sslmodules, sslmodules.callbacks, sslmodules.datamodules, sslmodules.configs
from lightning.pytorch import Trainer
from sslmodules import SimCLR
from sslmodules.callbacks import OnlineLinearProbe

assert "project" in callbacks.__file__ and "project" in datamodules.__file__
assert "site" in sslmodules.__file__ and "site" in sslmodules.callbacks.__file__, sslmodules.callbacks.__file__
assert not hasattr(callbacks, "OnlineLinearProbe")
trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                  callbacks=[Mine(), OnlineLinearProbe(2)])
trainer.fit(SimCLR("conv4", warmup_epochs=0), datamodule=Data())
print("probed", "probe/val_accuracy" in trainer.callback_metrics)
"""


def test_a_project_with_its_own_callbacks_and_datamodules_works_with_the_wheel(site, tmp_path):
    project = tmp_path / "project"
    for part in ("callbacks", "datamodules"):
        (project / part).mkdir(parents=True)
        (project / part / "__init__.py").touch()
    (project / "setup.cfg").write_text("[metadata]\nname = somebody-elses\n")
    (project / "callbacks" / "mine.py").write_text(
        "from lightning.pytorch import Callback\nclass Mine(Callback):\n    pass\n"
    )
    (project / "datamodules" / "data.py").write_text(
        "import torch\nfrom lightning.pytorch import LightningDataModule\n"
        "class Data(LightningDataModule):\n"
        "    def train_dataloader(self):\n"
        "        data = torch.utils.data.TensorDataset(torch.rand(8, 3, 16, 16), torch.arange(8) % 2)\n"
        "        return torch.utils.data.DataLoader(data, 4)\n"
        "    val_dataloader = train_dataloader\n"
    )
    (project / "train.py").write_text(PROJECT)
    env = {"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=project, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "probed True" in done.stdout


def test_the_wheel_holds_recipes_types_and_nothing_at_the_top_but_the_package(site):
    assert (site / "sslmodules" / "py.typed").is_file()
    recipes = site / "sslmodules" / "configs"
    held = {path.relative_to(recipes) for path in recipes.rglob("*.yaml")}
    assert held == {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    top = {p.name for p in site.iterdir() if not p.name.endswith(".dist-info")} - {"bin"}
    assert top == {"sslmodules"}


def test_a_checkout_imports_from_its_root_without_being_installed(tmp_path):
    for part in ("sslmodules", "callbacks", "datamodules", "configs"):
        shutil.copytree(ROOT / part, tmp_path / part)
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    code = "import sslmodules.callbacks as c, sslmodules.datamodules as d; print(c.__file__, d.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(tmp_path / p / "__init__.py") for p in ("callbacks", "datamodules")]
