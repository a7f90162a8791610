"""Spellings of recipe keys and values that earlier versions used; recipes that hold them are still read."""

from typing import Any

KEYS = {
    "optimiser": "optimizer",
    "guards": "fault_tolerance",
    "batch.chunks": "batch.micro_batches",
    "objective.contrastive.wire": "objective.contrastive.communication_dtype",
}
"""Old key, with the sections that hold it as they are called today, and its new name."""
VALUES = {
    ("graph_encoder.kind", "linearised"): "linearized",
    ("graph_encoder.names", "learnt"): "learned",
}
"""Key and old value, and the new value."""


def replace_old_spellings(values: dict[str, Any], prefix: str = "") -> tuple[dict[str, Any], list[str]]:
    """Return recipe values in today's spelling, and one notice for each old spelling found.

    Args:
        values: nested mappings as read from YAML; other values are passed through.
        prefix: dotted path of the section that holds `values`, with a final dot.

    Raises:
        ValueError: a section holds a key under its old and its new name.
    """
    replaced: dict[str, Any] = {}
    notices: list[str] = []
    for key, value in values.items():
        path = f"{prefix}{key}"
        new = KEYS.get(path, path)
        if new != path:
            notices.append(f"{path} is deprecated; write {new}")
        if isinstance(value, dict):
            value, inner = replace_old_spellings(value, f"{new}.")
            notices += inner
        elif isinstance(value, str) and (new, value) in VALUES:
            notices.append(f"{new}: {value} is deprecated; write {VALUES[new, value]}")
            value = VALUES[new, value]
        name = new.removeprefix(prefix)
        if name in replaced:
            raise ValueError(f"{new}: is given twice, once as {key}; keep {new}")
        replaced[name] = value
    return replaced, notices
