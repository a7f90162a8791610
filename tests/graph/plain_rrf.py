"""Slow reference reader of RRF: lists of dicts, one row at a time."""

import gzip
from collections import defaultdict
from pathlib import Path

from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.relations import inverse_name
from bali_ds.graph.rrf import COLUMNS, RrfFilter

Fact = tuple[str, str, str, str]
WORDS = {
    "CHD": ("child_of", "parent_of"), "PAR": ("parent_of", "child_of"), "RN": ("narrower_than", "broader_than"),
    "RB": ("broader_than", "narrower_than"), "RO": ("related_to", "related_to"), "SY": ("synonym_of", "synonym_of"),
    "RQ": ("possibly_synonym_of", "possibly_synonym_of"),
}  # fmt: skip
"""REL between CUI2 and CUI1, and between CUI1 and CUI2."""


def read(folder: Path, name: str) -> list[dict[str, str]]:
    path = folder / f"{name}.RRF"
    if path.exists():
        text = path.read_bytes()
    elif path.with_name(f"{name}.RRF.gz").exists():
        text = gzip.decompress(path.with_name(f"{name}.RRF.gz").read_bytes())
    else:
        return []
    lines = text.decode().removesuffix("\n").split("\n") if text else []
    return [
        dict(zip(COLUMNS[name].split(), line.removesuffix("\r").split("|"), strict=False)) for line in lines if line
    ]


def names(folder: Path, kept: RrfFilter) -> dict[str, list[str]]:
    """Return the names of each concept in order of preference."""
    ranks = {(row["SAB"], row["TTY"], row["SUPPRESS"]): int(row["RANK"]) for row in reversed(read(folder, "MRRANK"))}
    best: dict[str, dict[str, tuple]] = defaultdict(dict)
    for row in read(folder, "MRCONSO"):
        if (
            not row["STR"]
            or (kept.languages and row["LAT"] not in kept.languages)
            or (kept.sources and row["SAB"] not in kept.sources)
            or (kept.term_types and row["TTY"] not in kept.term_types)
            or (not kept.suppressed and row["SUPPRESS"] != "N")
            or (not kept.raw_relations and row["SAB"].startswith("MSH") and row["TTY"] in ("QAB", "QEV", "QSV", "TQ"))
            or int(row["SRL"]) > kept.license
        ):
            continue
        preference = (
            kept.languages.index(row["LAT"]) if kept.languages else 99,
            row["SUPPRESS"] != "N",
            -ranks.get((row["SAB"], row["TTY"], row["SUPPRESS"]), 0),
            row["TS"] != "P",
            row["STT"] != "PF",
            row["ISPREF"] != "Y",
        )
        known = best[row["CUI"]].get(row["STR"], preference)
        best[row["CUI"]][row["STR"]] = min(known, preference)
    return {
        cui: sorted(found, key=lambda name: (found[name], name.encode()))
        for cui, found in sorted(best.items(), key=lambda item: item[0].encode())
    }


def facts(folder: Path, kept: RrfFilter, concepts: dict[str, list[str]]) -> set[Fact]:
    """Return each fact from both ends: (concept, relation, neighbor, source)."""
    found = set()
    restricted = {row["SAB"] for row in read(folder, "MRCONSO") if int(row["SRL"]) > kept.license}
    for row in read(folder, "MRREL"):
        first, second, label, rel = row["CUI1"], row["CUI2"], row["RELA"] or row["REL"], row["REL"]
        inverse = inverse_name(label)
        if not kept.raw_relations and not row["RELA"]:
            label, inverse = WORDS.get(rel, (rel, rel))
        if (
            first != second
            and {first, second} <= concepts.keys()
            and row["SAB"] not in restricted
            and rel not in ("XR", "DEL")
            and (kept.raw_relations or not (rel in ("AQ", "QB", "SIB") or label.startswith("sib_in")))
            and (kept.suppressed or row["SUPPRESS"] == "N")
            and (not kept.sources or row["SAB"] in kept.sources)
        ):
            found |= {(second, label, first, row["SAB"]), (first, inverse, second, row["SAB"])}
    return joined_sources(found)


def joined_sources(facts: set[Fact]) -> set[Fact]:
    """Return one fact for those of several sources, which are joined by bars."""
    sources = defaultdict(set)
    for *statement, source in facts:
        sources[tuple(statement)].add(source)
    return {(*statement, "|".join(sorted(names))) for statement, names in sources.items()}


def stored_facts(graph: KnowledgeGraph) -> list[Fact]:
    return [
        (
            graph.cui(concept),
            graph.relation_name(int(graph.edge_relations[at])),
            graph.cui(int(graph.edge_targets[at])),
            graph.sources[graph.edge_sources[at]],
        )
        for concept in range(graph.num_concepts)
        for at in range(graph.edge_offsets[concept], graph.edge_offsets[concept + 1])
    ]
