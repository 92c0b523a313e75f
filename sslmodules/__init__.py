"""Self-supervised learning methods as small LightningModules."""

from pathlib import Path

import lazy_loader

__version__ = "0.1.0"

# In a checkout the folders `callbacks`, `datamodules` and `configs` lie beside this one; an installed package has them
# inside. Our own setup.cfg beside the folder tells the two apart, so that a user's folders are never taken for ours.
_root = Path(__file__).resolve().parent.parent
_setup = _root / "setup.cfg"
if _setup.is_file() and "name = sslmodules\n" in _setup.read_text(encoding="utf-8"):
    __path__.append(str(_root))

# Public names, listed in __init__.pyi, are imported when they are first used, so that the command line answers at once.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
