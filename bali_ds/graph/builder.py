"""Graph builder: merges sources into one graph whose bytes do not depend on the order of their rows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from bali_ds.directories import check_replaceable, published_directory
from bali_ds.errors import InputError
from bali_ds.files import write_json
from bali_ds.graph.columns import write_column
from bali_ds.graph.edges import FactCollector, FactTable, adjacency_lists, of_relations, without_pairs
from bali_ds.graph.identifiers import IdentifierIndex, fixed_width
from bali_ds.graph.manifest import GRAPH, seal
from bali_ds.graph.relations import inverse_name
from bali_ds.graph.source import TABLES, Source, Table
from bali_ds.graph.tables import read_table

_LONGEST_CHAIN = 32
"""Steps from a retired identifier to a concept; more are a cycle."""

Tables = dict[Table, pl.DataFrame]


@dataclass(frozen=True)
class FactFilter:
    """Which facts of all sources to store; relations are named in either direction.

    Attributes:
        keep: relations to store; () stores all.
        drop: relations to drop.
        held_out: a table with the columns head_cui and tail_cui. Facts between the two concepts of a row, in either
            direction, are dropped: they would leak the answers of an evaluation.
        required: refuse a graph without facts.
    """

    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    held_out: Path | None = None
    required: bool = False


def build_graph(
    sources: Sequence[Source], out: Path, facts: FactFilter | None = None, *, overwrite: bool | None = None
) -> dict[str, Any]:
    """Merge sources on their concept identifiers and publish the graph at `out`.

    Args:
        sources: readers; rows of equal concept identifiers are merged.
        out: the directory to write; an existing graph is replaced.
        facts: which facts to store; all by default.
        overwrite: replace any other directory as well; None if the caller has no such option.

    Returns:
        A report: concepts, names, edges, relations, fingerprint; under "read" the counts of read and dropped rows by
        file, under "dropped" the counts of facts and rows that the merge dropped, by reason, under "warnings" what
        looks wrong.

    Raises:
        InputError: a source cannot be read, no source has a concept, a relation is unknown, there are no facts though
            they are required, or `out` cannot be written.
    """
    check_replaceable(out, GRAPH, overwrite=overwrite)  # before the sources are read, which may take long
    tables = _gather(sources)
    cuis = _identifiers(tables)
    with published_directory(out, GRAPH, overwrite=overwrite) as folder:
        writer = _Writer(folder, cuis)
        writer.column("concepts.cuis", cuis)
        writer.names(tables)
        writer.types(tables)
        writer.codes(tables)
        writer.definitions(tables)
        writer.retired(tables)
        writer.edges(sources, facts or FactFilter())
        manifest = writer.manifest()
        write_json(folder / "manifest.json", manifest)
    return {
        "concepts": int(cuis.size),
        "names": manifest["columns"]["names.offsets"]["length"] - 1,
        "edges": writer.num_edges,
        "relations": len(manifest["relations"]),
        "fingerprint": manifest["fingerprint"],
        "read": {name: dict(counts) for source in sources for name, counts in source.report.items()},
        "dropped": dict(writer.dropped),
        "warnings": [warning for source in sources for warning in source.warnings],
    }


def _gather(sources: Sequence[Source]) -> Tables:
    frames: dict[Table, list[pl.DataFrame]] = {table: [pl.DataFrame(schema=TABLES[table])] for table in TABLES}
    for source in sources:
        for table, frame in source.concepts():
            frames[table].append(frame.select(list(TABLES[table])).unique())
    return {table: pl.concat(frames.pop(table)) for table in TABLES}


def _identifiers(tables: Tables) -> NDArray[Any]:
    tables["names"] = tables["names"].filter(pl.col("name") != "")
    cuis = pl.concat([tables.pop("concepts")["cui"], tables["names"]["cui"]]).unique()
    if not cuis.len():
        raise InputError("the sources contain no concept with a name; check that the files and the filters are right")
    if cuis.len() >= 2**31:
        raise InputError(f"{cuis.len()} concepts exceed the limit of 2**31 - 1 per graph")
    return np.sort(fixed_width(cuis))


class _Writer:
    """Writes the columns of one graph and collects their entries for the manifest."""

    def __init__(self, folder: Path, cuis: NDArray[Any]) -> None:
        self.folder = folder
        self.cuis = cuis
        self.index = IdentifierIndex(cuis)
        self.dropped: Counter[str] = Counter()
        self.num_edges = 0
        self._columns: dict[str, Any] = {}
        self._lists: dict[str, list[str]] = {}

    def column(self, name: str, values: NDArray[Any]) -> None:
        self._columns[name] = write_column(self.folder, name, values)

    def names(self, tables: Tables) -> None:
        frame = self._known(tables, "names").group_by("concept", "name").agg(pl.col("preference").min())
        frame = frame.sort("concept", "preference", "name")
        self._offsets("concepts.names", frame["concept"])
        self._text("names", frame["name"])

    def types(self, tables: Tables) -> None:
        frame = self._known(tables, "types").unique().sort("concept", "type")
        self._lists["semantic_types"] = frame["type"].unique().sort().to_list()
        self._offsets("concepts.types", frame["concept"])
        self.column("types", _numbers(frame["type"], self._lists["semantic_types"]).to_numpy())

    def codes(self, tables: Tables) -> None:
        frame = self._known(tables, "codes")
        vocabulary = self._lists["code_sources"] = frame["source"].unique().sort().to_list()
        frame = frame.with_columns(source=_numbers(frame["source"], vocabulary))
        frame = frame.group_by("source", "code", "concept").agg(pl.col("preference").min())
        frame = frame.sort("source", "code", "preference", "concept")
        self.column("codes.sources", frame["source"].to_numpy())
        self._text("codes", frame["code"])
        self.column("codes.concepts", frame["concept"].to_numpy())

    def definitions(self, tables: Tables) -> None:
        frame = self._known(tables, "definitions").filter(pl.col("text") != "").unique().sort("concept", "text")
        self._offsets("concepts.definitions", frame["concept"])
        self._text("definitions", frame["text"])

    def retired(self, tables: Tables) -> None:
        tables["retired"] = self._followed(tables["retired"])
        frame = self._known(tables, "retired").unique().sort("old", "concept")
        frame = frame.unique("old", keep="first", maintain_order=True)
        gone = self.index.find(frame["old"]) < 0
        self.column("retired.cuis", fixed_width(frame["old"])[gone])
        self.column("retired.concepts", frame["concept"].to_numpy()[gone])

    def _followed(self, retired: pl.DataFrame) -> pl.DataFrame:
        """Return retired identifiers with the concept at the end of their chain: A merged into B, and B into C."""
        following = retired.group_by("old").agg(pl.col("cui").min())
        for _ in range(_LONGEST_CHAIN):
            gone = pl.Series(self.index.find(retired["cui"]) < 0)
            ended = retired.filter(~gone)
            moved = retired.filter(gone).join(following, left_on="cui", right_on="old", how="left")
            if moved["cui_right"].null_count() == moved.height:
                break
            moved = moved.select(pl.coalesce("cui_right", "cui").alias("cui"), "old")
            retired = pl.concat([ended.select("cui", "old"), moved])
        return retired

    def edges(self, sources: Sequence[Source], wanted: FactFilter) -> None:
        collector = FactCollector(self.index)
        for source in sources:
            collector.add(source, self.dropped)
        facts = self._chosen(collector.finish(self.cuis.size), collector, wanted)
        if wanted.required and not facts.heads.size:
            reasons = ", ".join(f"{count:,} {what}" for what, count in self.dropped.items() if count)
            raise InputError(
                f"the sources state no fact between their concepts{f' (dropped: {reasons})' if reasons else ''}; check "
                "files and filters, or accept a graph of names with --names-only"
            )
        lists = adjacency_lists(facts, collector.labels, collector.sources, self.cuis.size)
        self.column("edges.offsets", lists.offsets)
        self.column("edges.entries", lists.words)
        self.column("kinds.relations", lists.kind_relations)
        self.column("kinds.sources", lists.kind_sources)
        self.num_edges = int(lists.offsets[-1]) // 2
        self._lists["relations"] = lists.relation_names
        inverses = collector.inverses
        self._lists["inverse_relations"] = [inverses.get(name, inverse_name(name)) for name in lists.relation_names]
        self._lists["sources"] = lists.source_names

    def _chosen(self, facts: FactTable, collector: FactCollector, wanted: FactFilter) -> FactTable:
        """Drop and count the facts of relations that are not wanted, and those between held-out pairs."""
        for what, relations in (("dropped", wanted.drop), ("not kept", wanted.keep)):
            if relations:
                found = of_relations(facts, collector.labels, collector.inverses, relations)
                kept = ~found if what == "dropped" else found
                self.dropped[f"facts of relations that are {what}"] += int((~kept).sum())
                facts = facts.where(kept)
        number = facts.heads.size
        facts = without_pairs(facts, self._pairs(wanted.held_out))
        self.dropped["facts held out"] += number - facts.heads.size
        return facts

    def _pairs(self, table: Path | None) -> NDArray[np.int32]:
        ends = ("head_cui", "tail_cui")
        frames = read_table(table, ends) if table else []
        pairs = [np.stack([self.index.find(frame[end]) for end in ends], axis=1) for frame in frames]
        found = np.concatenate([np.zeros((0, 2), np.int32), *pairs])
        return found[(found >= 0).all(axis=1)]

    def manifest(self) -> dict[str, Any]:
        return seal({"columns": self._columns, **self._lists})

    def _known(self, tables: Tables, table: Table) -> pl.DataFrame:
        """Remove a table from `tables` and return it with concept ids; drop and count rows of unknown concepts.

        Removing the table frees its memory as early as possible.
        """
        frame = tables.pop(table)
        concepts = pl.Series("concept", self.index.find(frame["cui"]))
        frame = frame.drop("cui").with_columns(concepts)
        unknown = int((concepts < 0).sum())
        if unknown:
            self.dropped[f"{table} of unknown concepts"] += unknown
            frame = frame.filter(pl.col("concept") >= 0)
        return frame

    def _offsets(self, name: str, concepts: pl.Series) -> None:
        rows = np.arange(self.cuis.size + 1, dtype=np.int32)
        self.column(name, np.searchsorted(concepts.to_numpy(), rows).astype(np.int64))

    def _text(self, name: str, strings: pl.Series) -> None:
        array = strings.to_arrow().cast(pa.large_string())
        offsets = np.frombuffer(array.buffers()[1], np.int64, len(array) + 1, array.offset * 8)
        text = np.frombuffer(array.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
        offsets = offsets - offsets[0]
        self.column(f"{name}.text", text)
        self.column(f"{name}.offsets", offsets.astype(np.uint32 if offsets[-1] < 2**32 else np.int64))


def _numbers(strings: pl.Series, vocabulary: list[str]) -> pl.Series:
    return strings.replace_strict(vocabulary, list(range(len(vocabulary)))).cast(pl.UInt16)
