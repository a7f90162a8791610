"""Failed steps that `bali-ds replay` finds."""

import pytest

from bali_ds.errors import InputError
from bali_ds.training.replay import replay


def test_other_files_are_not_listed_as_failed_steps(tmp_path):
    (tmp_path / "failures").mkdir()
    for name in ("step-00000012.json", "step-evil.json", "step-00000007.json"):
        (tmp_path / "failures" / name).write_text("{}")
    with pytest.raises(InputError, match=r"failed steps: 7, 12$"):
        replay(tmp_path, 4)
