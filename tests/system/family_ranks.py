"""Trains the recipes in a directory one after the other, each as a job of one rank; imports everything once.

python tests/system/family_ranks.py DIRECTORY
"""

import sys
from pathlib import Path

from bali_ds.cli.train import main_status
from tests.forked import run_forked
from tests.leaving import leave

if __name__ == "__main__":
    for recipe in sorted(Path(sys.argv[1]).glob("*.yaml")):
        run_forked(1, main_status, ["--config", str(recipe)])
    leave()
