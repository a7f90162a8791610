"""Entry point of `python -m bali_ds`, which is the same as `bali-ds`."""

import sys

from bali_ds.cli import main

if __name__ == "__main__":
    sys.exit(main())
