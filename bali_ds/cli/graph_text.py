"""Reports on graphs as text."""

from pathlib import Path
from typing import Any


def build_text(report: dict[str, Any], out: Path) -> str:
    """Return what was read, what was dropped, what was written."""
    lines = []
    for name, counts in report["read"].items():
        lines.append(f"{name}: " + ", ".join(f"{count:,} {what}" for what, count in counts.items() if count))
    lines += [f"dropped: {count:,} {what}" for what, count in report["dropped"].items() if count]
    lines.append(
        f"{out}: {report['concepts']:,} concepts, {report['names']:,} names, {report['edges']:,} edges, "
        f"{report['relations']:,} relations, fingerprint {report['fingerprint'][:16]}"
    )
    return "\n".join(lines)


def statistics_text(report: dict[str, Any]) -> str:
    """Return one line a number, grouped."""
    lines = []
    for key, value in report.items():
        if isinstance(value, dict):
            lines.append(key.replace("_", " "))
            width = max((len(name) for name in value), default=0)
            lines += [f"  {name:{width}}  {_number(count)}" for name, count in value.items()]
        else:
            lines.append(f"{key.replace('_', ' '):12}  {_number(value)}")
    return "\n".join(lines)


def _number(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.2f}" if isinstance(value, float) else str(value)
