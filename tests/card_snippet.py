"""The Python of a model card, as a reader of the card would run it."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def vectors_by_the_card(directory: Path, texts: list[str]) -> NDArray[np.float32]:
    """Return the vectors of texts that the card's own snippet computes."""
    (snippet,) = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.DOTALL)
    assert "bali_ds" not in snippet
    values: dict[str, Any] = {"texts": texts}
    exec(re.sub(r"^texts = .*$", "", snippet.replace('"DIR"', repr(str(directory))), flags=re.MULTILINE), values)
    vectors: NDArray[np.float32] = values["vectors"].detach().numpy()
    return vectors
