"""Deprecated spellings of recipe keys and values, which are still accepted."""

import json
from typing import Any

KEYS = {
    "optimiser": "optimizer",
    "guards": "fault_tolerance",
    "batch.chunks": "batch.micro_batches",
    "objective.contrastive.wire": "objective.contrastive.communication_dtype",
    "text_encoder.compile": "text_encoder.fused_layers",
}
"""Deprecated key, with the current names of its sections, and its current name."""
VALUES = {
    ("graph_encoder.kind", "linearised"): "linearized",
    ("graph_encoder.names", "learnt"): "learned",
    ("text_encoder.fused_layers", None): True,
}
"""Key and deprecated value, and the current value."""


def replace_old_spellings(values: dict[str, Any], prefix: str = "") -> tuple[dict[str, Any], list[str]]:
    """Return recipe values in current spelling, and a deprecation notice for each deprecated spelling.

    Args:
        values: nested mappings as read from YAML.
        prefix: dotted path of the section that holds `values`, with a final dot.

    Raises:
        ValueError: a section holds a key under its deprecated and its current name.
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
        elif isinstance(value, str | None) and (new, value) in VALUES:
            current = VALUES[new, value]
            if new == path:
                notices.append(f"{new}: {json.dumps(value)} is deprecated; write {json.dumps(current)}")
            value = current
        name = new.removeprefix(prefix)
        if name in replaced:
            raise ValueError(f"{new}: is given twice, once as {key}; keep {new}")
        replaced[name] = value
    return replaced, notices
