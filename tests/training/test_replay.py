"""Which refused steps `bali-ds replay` knows of."""

import pytest

from bali_ds.errors import InputError
from bali_ds.training.replay import replay


def test_files_that_are_not_failures_are_not_counted(tmp_path):
    (tmp_path / "failures").mkdir()
    for name in ("step-00000012.json", "step-evil.json", "step-00000007.json"):
        (tmp_path / "failures" / name).write_text("{}")
    with pytest.raises(InputError, match=r"steps that were refused: 7, 12$"):
        replay(tmp_path, 4)
