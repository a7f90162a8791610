"""The marker of a complete checkpoint, as training writes it."""

from pathlib import Path

from bali_ds.files import sha256_file, write_json
from tests.export.ranks import STEPS


def mark(checkpoint: Path) -> None:
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in checkpoint.glob("*.pt")}
    progress = {"step": STEPS, "position": {"epoch": 0, "samples_seen": 4}}
    write_json(checkpoint / "COMPLETE.json", {"files": files, "progress": progress, "identity": {"data": "f" * 64}})
