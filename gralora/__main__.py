"""``python -m gralora`` is the ``gralora`` command."""

from gralora.cli import main

if __name__ == "__main__":
    main(prog_name="gralora")
