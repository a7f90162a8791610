"""Node and edge tables: tab-separated values with the columns of the project, or others by a mapping."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl

from bali_ds.graph.delimited import read_delimited
from bali_ds.graph.rrf import split_codes
from bali_ds.graph.source import Report, Table, keep
from bali_ds.graph.vocabularies import relation_label, source_abbreviation

NODE_COLUMNS = ("cui", "preferred_name", "synonyms", "semantic_types", "source_terms")
EDGE_COLUMNS = ("head_cui", "relation", "tail_cui", "source")


class TableSource:
    """Two tables: nodes (cui, preferred_name, synonyms, semantic_types, source_terms) and edges (head_cui, relation,
    tail_cui, source).

    Synonyms are separated by bars, semantic types and source terms ("MESH:D003920") by semicolons. Further columns are
    ignored. Sources are written as the UMLS abbreviates them, so that tables and RRF of one graph meet.
    """  # noqa: D205

    mirrored = False

    def __init__(self, nodes: Path, edges: Path) -> None:
        self.nodes = Path(nodes)
        self.edges = Path(edges)
        self.report: Report = {}

    def concepts(self) -> Iterator[tuple[Table, pl.DataFrame]]:
        """Yield identifiers, names, semantic types and codes."""
        counts = self.report.setdefault(self.nodes.name, Counter())
        for frame in read_delimited(self.nodes, NODE_COLUMNS, delimiter="\t"):
            counts["rows"] += frame.height
            frame = keep(frame, counts, {"no identifier": pl.col("cui") != ""})
            yield "concepts", frame.select("cui")
            yield "names", frame.select("cui", name="preferred_name", preference=pl.lit(0, pl.Int64))
            synonyms = _exploded(frame, "synonyms", "|", "name")
            yield "names", synonyms.with_columns(preference=pl.lit(1, pl.Int64))
            yield "types", _exploded(frame, "semantic_types", ";", "type")
            codes = _exploded(frame, "source_terms", ";", "code")
            yield "codes", split_codes(codes.with_columns(source=pl.lit(""), preference=pl.lit(0, pl.Int64)))

    def relations(self) -> Iterator[pl.DataFrame]:
        """Yield facts."""
        counts = self.report.setdefault(self.edges.name, Counter())
        for frame in read_delimited(self.edges, EDGE_COLUMNS, delimiter="\t"):
            counts["rows"] += frame.height
            frame = frame.rename({"head_cui": "head", "tail_cui": "tail"})
            kinds = frame.select("source", "relation").unique(maintain_order=True)
            sources = [source_abbreviation(source) for source in kinds["source"]]
            labels = [relation_label(*kind) for kind in zip(sources, kinds["relation"], strict=True)]
            kinds = kinds.with_columns(umls_source=pl.Series(sources), umls_relation=pl.Series(labels))
            frame = frame.join(kinds, on=["source", "relation"], maintain_order="left")
            yield frame.select("head", "tail", relation="umls_relation", source="umls_source")

    def inverses(self) -> Mapping[str, str]:
        """Tables document no inverses."""
        return {}


def _exploded(frame: pl.DataFrame, column: str, separator: str, name: str) -> pl.DataFrame:
    values = frame.select("cui", pl.col(column).str.split(separator).alias(name))
    return values.explode(name).filter(pl.col(name).fill_null("") != "")
