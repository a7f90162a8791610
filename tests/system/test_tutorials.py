"""The commands of the tutorials that need no license and no network, run as they are printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(1800)]
SHORT = {
    "bali-ds train sample": "bali-ds train sample steps=3 log_every=1 batch.passages=16",
}
"""Commands of the pages, and the same with fewer steps."""


@pytest.mark.parametrize("page", ["quickstart.md", "tutorials/ontology.md", "tutorials/slurm.md"])
def test_the_commands_of_a_page_run_one_after_the_other(page, tmp_path):
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```$", (REPOSITORY / "docs" / page).read_text(), re.M | re.S)
    assert blocks
    bin_folder = Path(sys.executable).parent
    environment = {"PATH": f"{bin_folder}:/usr/bin:/bin", "HOME": str(tmp_path), "DS_ACCELERATOR": "cpu"}
    environment |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    environment |= {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
    script = ""
    for language, text in blocks:
        for whole, short in SHORT.items():
            text = re.sub(rf"^{re.escape(whole)}$", short, text, flags=re.M)
        script += text if language == "bash" else f"python - <<'CODE'\n{text}CODE\n"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
