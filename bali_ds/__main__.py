"""`python -m bali_ds` is `bali-ds`."""

import sys

from bali_ds.cli import main

if __name__ == "__main__":
    sys.exit(main())
