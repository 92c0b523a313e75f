import doctest
import importlib
import pkgutil

import pytest

import sslmodules.datamodules


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(sslmodules.datamodules.__path__)])
def test_examples_in_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(f"sslmodules.datamodules.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
