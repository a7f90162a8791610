"""Report of a build: what was read, what is stored, what was dropped and why; statistics of a shard set."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bali_ds.corpus.document import ReadReport
from bali_ds.files import read_json
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.shards.assembly import Assembly
from bali_ds.shards.build_settings import Corpus
from bali_ds.shards.shard_set import ShardSet

_MOST_FREQUENT = 20
_LABELS = {
    "surface_mismatches": "mentions that differ from the text",
    "mentions_outside_graph": "mentions of concepts not in the graph",
    "mentions_cut": "mentions across passage boundaries",
    "mentions_of_placeholder": "mentions of an abstract placeholder",
    "documents_with_a_text_seen_before": "documents with duplicate text",
    "concepts_that_hold_half_of_the_views": "concepts in half of all mentions",
    "share_of_the_graph": "fraction of the graph",
}
"""What the printed report calls counts whose stored name is unclear."""


def build_report(
    parts: Sequence[tuple[Corpus, Path]], assembly: Assembly, graph: KnowledgeGraph, failures: Sequence[str]
) -> dict[str, Any]:
    """Return the report of a build as plain values.

    `read` has the counts of the readers over all inputs, `formats` the same by format, `dropped` what was read but is
    not stored, `coverage` how much of the graph occurs in passages, `most_frequent` the concepts of most passages,
    `most_linked` the strings of most linked mentions, in lower case, each with its concept.
    """
    whole = ReadReport()
    formats: dict[str, Counter[str]] = defaultdict(Counter)
    for corpus, part in parts:
        values = read_json(part / "report.json")
        surfaces = Counter({(surface, concept_id): count for surface, concept_id, count in values["surfaces"]})
        own = ReadReport(Counter(values["counts"]), Counter(values["types"]), surfaces, values["remarks"])
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
            {"cui": graph.cui(concept_id), "name": graph.preferred_name(concept_id), "passages": count}
            for concept_id, count in assembly.concepts[:_MOST_FREQUENT].tolist()
        ],
        "most_linked": [
            {"text": text, "cui": graph.cui(concept_id), "name": graph.preferred_name(concept_id), "mentions": count}
            for (text, concept_id), count in whole.surfaces.most_common(_MOST_FREQUENT)
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
        "dropped": report["dropped"],
        "coverage of the graph": report["coverage"],
    }
    for title, section in sections.items():
        values = {name: value for name, value in section.items() if value}
        lines += [
            title,
            *(f"  {_LABELS.get(name, name).replace('_', ' '):40}{value:>12,}" for name, value in values.items()),
        ]
    lines.append("most frequent concepts")
    lines += [
        f"  {row['cui'] + '  ' + row['name']:40.40}{row['passages']:>12,}" for row in report["most_frequent"][:10]
    ]
    lines.append("most linked strings")
    lines += [
        f"  {row['text'] + '  →  ' + row['cui'] + '  ' + row['name']:60.60}{row['mentions']:>12,}"
        for row in report["most_linked"]
    ]
    lines += [f"remark: {remark}" for remark in report["remarks"]]
    return "\n".join(lines)


_COUNTS = ("documents", "passages", "mentions", "linked_mentions", "concepts")


def statistics(path: Path) -> dict[str, Any]:
    """Return the counts of a shard set from its index and sample table.

    `documents` and `mentions` count what was read, `passages` what is stored, `linked_mentions` the stored mentions
    that are linked to the graph, `concepts` their distinct concepts.
    """
    shards = ShardSet.open(path)
    samples = shards.samples
    counts = shards.index["counts"]
    values: dict[str, Any] = {name: counts[name] for name in _COUNTS if name in counts}
    values["shards"] = len(shards.shards)
    values["train_passages"], values["validation_passages"] = (
        len(shards.split(split)) for split in ("train", "validation")
    )
    for name in ("tokens", "views", "edges"):
        mean = float(np.mean(samples[name])) if len(samples) else 0.0
        values[f"{name}_per_passage"] = round(mean, 2)
    values["names"] = len(shards.names.offsets) - 1
    values["bytes"] = sum(shard.bytes for shard in shards.shards)
    values["tokenizer"] = shards.index["tokenizer"]["name"]
    values["graph_fingerprint"] = shards.index["graph_fingerprint"]
    values["fingerprint"] = shards.fingerprint
    return values
