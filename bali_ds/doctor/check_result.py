"""What a check found: a line of the doctor's table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One checked thing.

    Attributes:
        subject: what was looked at.
        status: "error" keeps a run from starting or finishing; "warning" may.
        value: what was found.
        remedy: what to do about it; empty when all is well.
    """

    subject: str
    status: Status
    value: str
    remedy: str = ""


def ok(subject: str, value: str) -> Finding:
    """Return a finding that needs nothing done."""
    return Finding(subject, "ok", value)


def warning(subject: str, value: str, remedy: str) -> Finding:
    """Return a finding that may hurt a run."""
    return Finding(subject, "warning", value, remedy)


def error(subject: str, value: str, remedy: str) -> Finding:
    """Return a finding that keeps a run from working."""
    return Finding(subject, "error", value, remedy)


def findings_text(findings: Sequence[Finding]) -> str:
    """Return findings as a table, each remedy under its line, and a count at the end."""
    marks = {"ok": " ok ", "warning": "warn", "error": "FAIL"}
    width = max(len(finding.subject) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{marks[finding.status]}  {finding.subject:<{width}}  {finding.value}")
        if finding.remedy:
            lines.append(f"{'':{width + 8}}-> {finding.remedy}")
    counts = {status: sum(finding.status == status for finding in findings) for status in marks}
    lines.append(f"{counts['error']} errors, {counts['warning']} warnings, {counts['ok']} fine")
    return "\n".join(lines)
