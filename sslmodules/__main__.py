"""``python -m sslmodules`` is the command ``sslmodules``."""

from sslmodules.cli import main

if __name__ == "__main__":
    main()
