"""Reader of node and edge tables with the project's column names, or others through a column mapping."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet

from bali_ds.errors import InputError
from bali_ds.graph.delimited import header, read_delimited
from bali_ds.graph.identifiers import relation_label, source_abbreviation
from bali_ds.graph.source import Report, Table, apply_filters, split_codes
from bali_ds.graph.table_presets import TablePreset


def table_columns(path: Path) -> list[str]:
    """Return the names of a table's columns.

    Raises:
        InputError: the file cannot be read.
    """
    if _is_parquet(path):
        return _parquet(path).schema_arrow.names
    return header(path, *_text_format(path))


def read_table(path: Path, wanted: Sequence[str], columns: Sequence[str] = ()) -> Iterator[pl.DataFrame]:
    """Yield the wanted columns as strings, block by block; a missing value becomes the empty string.

    Args:
        path: the table.
        wanted: the columns to read.
        columns: all columns of a text table whose first line does not name them.

    Raises:
        InputError: the file cannot be read, or is damaged.
    """
    if not _is_parquet(path):
        delimiter, quoted = _text_format(path)
        yield from read_delimited(path, wanted, delimiter=delimiter, columns=columns or None, quoted=quoted)
        return
    row = 0
    try:
        for batch in _parquet(path).iter_batches(columns=list(wanted)):
            yield pl.DataFrame(pl.from_arrow(batch)).select(pl.col(wanted).cast(pl.String).fill_null(""))
            row += batch.num_rows
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path}: row {row + 1}: cannot be read: {' '.join(str(error).split())[:200]}") from error


def _is_parquet(path: Path) -> bool:
    return path.suffix == ".parquet"


def _text_format(path: Path) -> tuple[str, bool]:
    return (",", True) if path.name.removesuffix(".gz").endswith(".csv") else ("\t", False)


def _parquet(path: Path) -> pyarrow.parquet.ParquetFile:
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: is not a readable Parquet file: {' '.join(str(error).split())[:200]}") from error


NODE_COLUMNS = {
    "cui": True, "preferred_name": True, "synonyms": False, "semantic_types": False, "source_terms": False,
    "prefix": False, "property": False, "key": False,
}  # fmt: skip
EDGE_COLUMNS = {
    "head_cui": True, "relation": True, "tail_cui": True, "source": False, "head_name": False, "tail_name": False,
    "head_types": False, "tail_types": False, "head_prefix": False, "tail_prefix": False,
}  # fmt: skip
_PREFIXES = {"cui": "prefix", "head_cui": "head_prefix", "tail_cui": "tail_prefix"}
_MAPPED_ALONE = {*_PREFIXES.values(), "property", "key"}
_EXAMPLES = 3


class TableSource:
    """Reader of a node table and an edge table, or of an edge table alone that names its nodes.

    Nodes have cui and preferred_name, and may have synonyms (separated by bars), semantic_types and source_terms
    ("MESH:D003920"; both separated by semicolons). Edges have head_cui, relation, tail_cui, and may have source,
    head_name, tail_name, head_types, tail_types. The columns prefix, head_prefix and tail_prefix hold the vocabulary of
    an identifier that is unique only within it; they are used only if they are mapped. Other columns are ignored.
    Sources are stored under their UMLS abbreviations, so that tables and RRF of one graph merge.

    Args:
        nodes: the node table; None if the edge table names its nodes, or holds them as rows.
        edges: the edge table.
        columns: maps a column named above to its name in the table ({"head_cui": "x_index"}); such a column of the
            table is not used by its own name.
        preset: how to read the tables of a known graph; `columns` takes precedence.

    Raises:
        InputError: a required or mapped column is missing from its table, or a mapped name is unknown.
    """

    def __init__(
        self,
        nodes: Path | None,
        edges: Path,
        columns: Mapping[str, str] | None = None,
        preset: TablePreset | None = None,
    ) -> None:
        if preset and preset.neo4j:
            nodes = edges
        self.nodes = Path(nodes) if nodes else None
        self.edges = Path(edges)
        self.report: Report = {}
        self.warnings: list[str] = []
        self._preset = preset or TablePreset()
        self.mirrored = self._preset.mirrored
        mapping = {**self._preset.columns, **(columns or {})}
        unknown = set(mapping) - NODE_COLUMNS.keys() - EDGE_COLUMNS.keys()
        if unknown:
            known = ", ".join([*NODE_COLUMNS, *EDGE_COLUMNS])
            raise InputError(f"column {min(unknown)}: is not a column of a graph; use one of {known}")
        headers = self._preset.node_header, self._preset.edge_header
        self._node_columns = _present(self.nodes, headers[0], NODE_COLUMNS, mapping) if self.nodes else {}
        self._edge_columns = _present(self.edges, headers[1], EDGE_COLUMNS, mapping)
        if self._preset.neo4j:
            self._edge_columns.pop("source", None)  # the first column of this name is that of nodes
        present = {*self._node_columns, *self._edge_columns}
        self._has_prefixes = bool(self._preset.separator) or not present.isdisjoint(_PREFIXES.values())

    def concepts(self) -> Iterator[tuple[Table, pl.DataFrame]]:
        """Yield identifiers, names, semantic types and codes."""
        preferred = []
        for frame in self._concept_frames():
            yield from _concept_tables(frame)
            if self._has_prefixes:
                own = frame.filter(pl.col("cui").str.contains(":", literal=True)).select("cui", code="cui")
                yield "codes", split_codes(own.with_columns(source=pl.lit(""), preference=pl.lit(0, pl.Int64)))
            if "preferred_name" in frame.columns:
                preferred.append(frame.select("cui", "preferred_name").unique())
        if preferred:
            self._compare_names(pl.concat(preferred))

    def _concept_frames(self) -> Iterator[pl.DataFrame]:
        if self.nodes:
            counts = self.report.setdefault(self.nodes.name, Counter())
            for frame in self._read(self.nodes, self._node_columns):
                if self._preset.neo4j:
                    frame = frame.filter(pl.col("key") != "")
                counts["rows"] += frame.height
                filters = {"no identifier": pl.col("cui") != ""}
                if self._preset.named_by:
                    filters["other property"] = pl.col("property") == self._preset.named_by
                yield apply_filters(frame, counts, filters)
        for end in ("head", "tail"):
            named = {"preferred_name": f"{end}_name", "semantic_types": f"{end}_types"}
            if self.nodes is None or named["preferred_name"] in self._edge_columns:
                wanted = (f"{end}_cui", f"{end}_prefix", *named.values())
                columns = {key: own for key, own in self._edge_columns.items() if key in wanted}
                for frame in self._read(self.edges, columns):
                    names = {key: own for key, own in named.items() if own in frame.columns}
                    frame = frame.select(cui=f"{end}_cui", **names).unique(maintain_order=True)
                    yield frame.filter(pl.col("cui") != "")

    def _compare_names(self, names: pl.DataFrame) -> None:
        """Warn of identifiers with several preferred names, which may belong to several vocabularies."""
        names = names.unique().filter(pl.col("preferred_name") != "")
        several = names.sort("preferred_name").group_by("cui").agg("preferred_name").sort("cui")
        several = several.filter(pl.col("preferred_name").list.len() > 1)
        if several.height:
            rows = several.head(_EXAMPLES).iter_rows()
            examples = "; ".join(f"{cui}: {', '.join(found[:_EXAMPLES])}" for cui, found in rows)
            self.warnings.append(
                f"{(self.nodes or self.edges).name}: {several.height} identifiers have several preferred names "
                f"({examples[:300]}); if they belong to several vocabularies, name their columns with --prefix-column"
            )

    def relations(self) -> Iterator[pl.DataFrame]:
        """Yield facts."""
        counts = self.report.setdefault(self.edges.name, Counter())
        wanted = ("head_cui", "relation", "tail_cui", "source", "head_prefix", "tail_prefix")
        identifiers = self._identifiers_of_keys() if self._preset.neo4j else None
        for frame in self._read(self.edges, {key: own for key, own in self._edge_columns.items() if key in wanted}):
            if identifiers is not None:
                frame = _with_identifiers(frame.filter(pl.col("relation") != ""), identifiers)
            counts["rows"] += frame.height
            if "source" not in frame.columns:
                frame = frame.with_columns(source=pl.lit(self.edges.name.partition(".")[0]))
            frame = frame.with_columns(self._relation())
            kinds = frame.select("source", "relation").unique(maintain_order=True)
            sources = [source_abbreviation(source) for source in kinds["source"]]
            labels = [relation_label(*kind) for kind in zip(sources, kinds["relation"], strict=True)]
            kinds = kinds.with_columns(umls_source=pl.Series(sources), umls_relation=pl.Series(labels))
            frame = frame.join(kinds, on=["source", "relation"], maintain_order="left")
            yield frame.select(head="head_cui", relation="umls_relation", tail="tail_cui", source="umls_source")

    def _relation(self) -> pl.Expr:
        relation, pattern = pl.col("relation"), self._preset.relation_pattern
        if pattern:
            relation = pl.coalesce(relation.str.extract(pattern, 1).str.to_lowercase(), relation)
        return relation.replace(self._preset.relations)

    def _identifiers_of_keys(self) -> pl.DataFrame:
        """Return the identifier of each node by its key in a file of Neo4j."""
        assert self.nodes
        columns = {key: own for key, own in self._node_columns.items() if key in ("key", "cui", "prefix")}
        frames = (frame.filter(pl.col("key") != "") for frame in self._read(self.nodes, columns))
        return pl.concat(frame.select("key", "cui") for frame in frames)

    def inverses(self) -> Mapping[str, str]:
        """Return an empty mapping: tables do not document inverses."""
        return {}

    def _read(self, path: Path, columns: Mapping[str, str]) -> Iterator[pl.DataFrame]:
        """Yield the columns of a table by the keys of `columns`, prefixes merged into the identifiers."""
        header = self._preset.node_header if path == self.nodes else self._preset.edge_header
        for frame in read_table(path, list(dict.fromkeys(columns.values())), header):
            frame = frame.select(**{key: pl.col(own) for key, own in columns.items()})
            if self._preset.neo4j:
                frame = _without_neo4j_marks(frame)
            yield frame.with_columns(**{key: self._identifier(key, columns) for key in _PREFIXES if key in columns})

    def _identifier(self, key: str, columns: Mapping[str, str]) -> pl.Expr:
        prefixes, separator = self._preset.prefixes, self._preset.separator
        code = pl.col(key)
        if _PREFIXES[key] in columns:
            prefix = pl.col(_PREFIXES[key]).replace(prefixes)
        elif separator:
            prefix = code.str.split(separator).list.first().replace(prefixes)
            code = code.str.splitn(separator, 2).struct.field("field_1").fill_null("")
        else:
            return code
        # A code that includes the prefix of its vocabulary ("GO:0003193") keeps that one alone.
        is_whole = (prefix == "") | code.str.contains(":", literal=True)
        return pl.when((code == "") | is_whole).then(code).otherwise(pl.format("{}:{}", prefix, code))


def _present(
    path: Path, header: Sequence[str], columns: Mapping[str, bool], mapping: Mapping[str, str]
) -> dict[str, str]:
    """Return the table's name of each column that it has; refuse a table without a required or mapped column."""
    found = list(header) or table_columns(path)
    taken = set(mapping.values())
    own = {key: mapping.get(key, key) for key in columns if key in mapping or key not in taken | _MAPPED_ALONE}
    for key, needed in columns.items():
        name = own.get(key, key)
        if (needed or key in mapping) and (key not in own or name not in found):
            raise InputError(f"{path}: line 1: has no column {name}; it has {', '.join(found)[:200]}")
    return {key: name for key, name in own.items() if name in found}


def _without_neo4j_marks(frame: pl.DataFrame) -> pl.DataFrame:
    """Return node rows with labels without their colons, several joined by ;, and lists of synonyms joined by bars."""
    labels = [name for name in ("prefix", "semantic_types") if name in frame.columns]
    frame = frame.with_columns(pl.col(name).str.strip_chars_start(":").str.replace_all(":", ";") for name in labels)
    if "synonyms" not in frame.columns:
        return frame
    quoted = pl.col("synonyms").str.extract_all(r'"(?:[^"\\]|\\.)*"')
    return frame.with_columns(synonyms=quoted.list.eval(pl.element().str.strip_chars('"')).list.join("|"))


def _with_identifiers(edges: pl.DataFrame, identifiers: pl.DataFrame) -> pl.DataFrame:
    """Return edges whose heads and tails are identifiers instead of keys; empty ones for unknown keys."""
    for end in ("head_cui", "tail_cui"):
        edges = edges.rename({end: "key"}).join(identifiers, on="key", how="left", maintain_order="left")
        edges = edges.drop("key").with_columns(pl.col("cui").fill_null("").alias(end)).drop("cui")
    return edges


def _concept_tables(frame: pl.DataFrame) -> Iterator[tuple[Table, pl.DataFrame]]:
    yield "concepts", frame.select("cui")
    if "preferred_name" in frame.columns:
        yield "names", frame.select("cui", name="preferred_name", preference=pl.lit(0, pl.Int64))
    if "synonyms" in frame.columns:
        yield "names", _exploded(frame, "synonyms", "|", "name").with_columns(preference=pl.lit(1, pl.Int64))
    if "semantic_types" in frame.columns:
        yield "types", _exploded(frame, "semantic_types", ";", "type")
    if "source_terms" in frame.columns:
        codes = _exploded(frame, "source_terms", ";", "code")
        yield "codes", split_codes(codes.with_columns(source=pl.lit(""), preference=pl.lit(0, pl.Int64)))


def _exploded(frame: pl.DataFrame, column: str, separator: str, name: str) -> pl.DataFrame:
    values = frame.select("cui", pl.col(column).str.split(separator).alias(name))
    return values.explode(name).filter(pl.col(name).fill_null("") != "")
