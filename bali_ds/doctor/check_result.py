"""Result of one check, and the table of results that `bali-ds doctor` prints."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class CheckResult:
    """Result of one check.

    Attributes:
        subject: what was checked.
        status: "error" prevents a run from starting or finishing, "warning" may slow it down or stop it.
        value: what the check found.
        remedy: what to do about it; empty for "ok".
    """

    subject: str
    status: Status
    value: str
    remedy: str = ""


def ok(subject: str, value: str) -> CheckResult:
    """Return the result of a check that passed."""
    return CheckResult(subject, "ok", value)


def warning(subject: str, value: str, remedy: str) -> CheckResult:
    """Return the result of a check that found a possible problem."""
    return CheckResult(subject, "warning", value, remedy)


def error(subject: str, value: str, remedy: str) -> CheckResult:
    """Return the result of a check that failed."""
    return CheckResult(subject, "error", value, remedy)


def results_text(results: Sequence[CheckResult]) -> str:
    """Return results as a table: each remedy below its line, and a count at the end."""
    marks = {"ok": " ok ", "warning": "warn", "error": "FAIL"}
    width = max(len(result.subject) for result in results)
    lines = []
    for result in results:
        lines.append(f"{marks[result.status]}  {result.subject:<{width}}  {result.value}")
        if result.remedy:
            lines.append(f"{'':{width + 8}}-> {result.remedy}")
    counts = {status: sum(result.status == status for result in results) for status in marks}
    lines.append(f"{counts['error']} errors, {counts['warning']} warnings, {counts['ok']} ok")
    return "\n".join(lines)
