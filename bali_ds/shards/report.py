"""The report of a build: what was read, what is stored, what was left out and why."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bali_ds.corpus.document import ReadReport
from bali_ds.files import read_json
from bali_ds.graph.store import KnowledgeGraph
from bali_ds.shards.assemble import Assembly
from bali_ds.shards.part import Corpus

_MOST_FREQUENT = 20


def build_report(
    parts: Sequence[tuple[Corpus, Path]], assembly: Assembly, graph: KnowledgeGraph, failures: Sequence[str]
) -> dict[str, Any]:
    """Return the report of a build as plain values.

    `read` counts what the readers saw, over all inputs; `formats` the same by format; `dropped` what was read and not
    stored; `coverage` how much of the graph the passages reach; `most_frequent` the concepts of most passages.
    """
    whole = ReadReport()
    formats: dict[str, Counter[str]] = defaultdict(Counter)
    for corpus, part in parts:
        values = read_json(part / "report.json")
        own = ReadReport(Counter(values["counts"]), Counter(values["types"]), values["remarks"])
        formats[f"{corpus.format}{', dictionary' if corpus.uses_dictionary else ''}"].update(own.counts)
        whole.merge(own)
    passages = assembly.concepts[:, 1]
    half = int((passages.cumsum() * 2 <= passages.sum()).sum()) + 1 if len(passages) else 0
    return {
        "counts": assembly.counts,
        "read": dict(whole.counts),
        "formats": {name: dict(counts) for name, counts in formats.items()},
        "linked_by_type": dict(whole.types.most_common()),
        "dropped": assembly.dropped,
        "coverage": {
            "concepts": len(passages),
            "share_of_the_graph": round(len(passages) / max(graph.num_concepts, 1), 6),
            "concepts_in_one_passage": int((passages == 1).sum()),
            "concepts_that_hold_half_of_the_views": half,
        },
        "most_frequent": [
            {"cui": graph.cui(concept), "name": graph.preferred_name(concept), "passages": count}
            for concept, count in assembly.concepts[:_MOST_FREQUENT].tolist()
        ],
        "remarks": whole.remarks,
        "failures": list(failures),
    }


def readable_report(report: dict[str, Any]) -> str:
    """Return a report as text."""
    lines: list[str] = []
    sections = {
        "stored": report["counts"],
        "read": report["read"],
        "linked, by format": {name: counts.get("linked_mentions", 0) for name, counts in report["formats"].items()},
        "linked, by type": report["linked_by_type"],
        "left out": report["dropped"],
        "coverage of the graph": report["coverage"],
    }
    for title, section in sections.items():
        values = {name: value for name, value in section.items() if value}
        lines += [title, *(f"  {name.replace('_', ' '):40}{value:>12,}" for name, value in values.items())]
    lines.append("most frequent concepts")
    lines += [
        f"  {row['cui'] + '  ' + row['name']:40.40}{row['passages']:>12,}" for row in report["most_frequent"][:10]
    ]
    lines += [f"remark: {remark}" for remark in report["remarks"]]
    return "\n".join(lines)
