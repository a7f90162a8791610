"""The interface between readers of concept graphs and the graph builder."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Literal, Protocol

import polars as pl

from bali_ds.graph.identifiers import split_code

Table = Literal["concepts", "names", "types", "codes", "definitions", "retired"]
Report = dict[str, Counter[str]]

# Columns of each table; all strings but `preference` (int64, lower is better).
TABLES: dict[Table, dict[str, type[pl.DataType]]] = {
    "concepts": {"cui": pl.String},
    "names": {"cui": pl.String, "name": pl.String, "preference": pl.Int64},
    "types": {"cui": pl.String, "type": pl.String},
    "codes": {"cui": pl.String, "source": pl.String, "code": pl.String, "preference": pl.Int64},
    "definitions": {"cui": pl.String, "text": pl.String},
    "retired": {"cui": pl.String, "old": pl.String},
}


class Source(Protocol):
    """Streaming reader of one graph.

    A concept exists if the table `concepts` or `names` lists it. The builder drops rows of other tables with
    unknown concepts.

    Attributes:
        mirrored: whether every fact is stated from both ends, so that inverse names can be inferred from the data.
        report: counts of rows by file, filled while reading.
        warnings: what looks wrong, one line each, filled while reading.
    """

    mirrored: bool
    report: Report
    warnings: list[str]

    def concepts(self) -> Iterator[tuple[Table, pl.DataFrame]]:
        """Yield rows of the tables above."""

    def relations(self) -> Iterator[pl.DataFrame]:
        """Yield facts with string columns head, relation, tail, source."""

    def inverses(self) -> Mapping[str, str]:
        """Return the inverses of relations that the source documents."""


def apply_filters(frame: pl.DataFrame, counts: Counter[str], filters: Mapping[str, pl.Expr]) -> pl.DataFrame:
    """Return the rows that pass every filter; count each dropped row under the first filter that it fails."""
    for reason, passes in filters.items():
        height = frame.height
        frame = frame.filter(passes)
        if frame.height < height:
            counts[f"dropped: {reason}"] += height - frame.height
    return frame


def split_codes(codes: pl.DataFrame) -> pl.DataFrame:
    """Return codes without the prefix where it repeats the source ("HPO", "HP:0000118")."""
    prefixed = codes["code"].str.contains(":", literal=True)
    if not prefixed.any():
        return codes
    pairs = [split_code(source, code) for source, code in codes.filter(prefixed).select("source", "code").iter_rows()]
    split = codes.filter(prefixed).with_columns(
        source=pl.Series([source for source, _ in pairs], dtype=pl.String),
        code=pl.Series([code for _, code in pairs], dtype=pl.String),
    )
    return pl.concat([codes.filter(~prefixed), split])
