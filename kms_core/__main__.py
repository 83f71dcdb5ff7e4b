"""``python -m kms_core`` is the command ``kms``."""

from kms_core.cli import main

main()
