"""``python -m asrkd``, the form that ``torchrun -m asrkd`` needs."""

from asrkd.cli import main

main()
