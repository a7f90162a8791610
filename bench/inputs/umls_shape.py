"""Made-up RRF of the shape and size of the UMLS."""

from pathlib import Path

import numpy as np
import polars as pl

CONCEPTS, NAMES, RELATIONS = 4_000_000, 15_000_000, 39_000_000
WORDS = ["acute", "chronic", "benign", "left", "right", "renal", "cardiac", "hepatic", "bone", "disease", "of", "the"]
SOURCES = ["SNOMEDCT_US", "MSH", "NCI", "ICD10CM", "RXNORM", "LNC", "MDR", "GO", "HPO", "OMIM", "FMA", "NCBI"]
RELA = ["isa", "has_finding_site", "part_of", "may_treat", "has_ingredient", "associated_with", "mapped_to", ""]
INVERSE = [
    "inverse_isa",
    "finding_site_of",
    "has_part",
    "may_be_treated_by",
    "ingredient_of",
    "rela_17",
    "mapped_from",
    "",
]


def generate(folder: Path, scale: float) -> None:
    """Write MRCONSO, MRREL, MRSTY and MRRANK of the asked size, degrees skewed as a power law."""
    random_numbers = np.random.default_rng(7)
    concepts = int(CONCEPTS * scale)
    numbers = np.sort(random_numbers.choice(9_999_999, concepts, replace=False)) + 1
    cuis = pl.Series(numbers).cast(pl.String).str.zfill(7)
    cuis = ("C" + cuis).rename("cui")
    _write_blocks(folder / "MRCONSO.RRF", _atoms(cuis, int(NAMES * scale), random_numbers))
    _write_blocks(folder / "MRREL.RRF", _relations(cuis, int(RELATIONS * scale), random_numbers))
    types = random_numbers.integers(1, 204, concepts)
    semantic = pl.DataFrame({"cui": cuis, "tui": "T" + pl.Series(types).cast(pl.String).str.zfill(3)})
    _write_blocks(folder / "MRSTY.RRF", [_row(semantic, "cui|tui|A1|A type|AT1|")])
    ranks = [f"{400 - 4 * rank:04}|{source}|PT|N|\n" for rank, source in enumerate(SOURCES)]
    (folder / "MRRANK.RRF").write_text("".join(ranks))


def _row(frame: pl.DataFrame, fields: str) -> pl.DataFrame:
    columns = [pl.col(field) if field in frame.columns else pl.lit(field) for field in fields.split("|")]
    return frame.select(pl.concat_str([*columns, pl.lit("")], separator="|"))


def _write_blocks(path: Path, blocks: object) -> None:
    with open(path, "wb") as stream:
        for block in blocks:  # type: ignore[attr-defined]
            block.write_csv(stream, include_header=False, quote_style="never")


def _atoms(cuis: pl.Series, count: int, random_numbers: np.random.Generator):  # type: ignore[no-untyped-def]
    owners = np.concatenate([np.arange(cuis.len()), random_numbers.integers(0, cuis.len(), count - cuis.len())])
    owners.sort()
    words = pl.Series(WORDS)
    for start in range(0, count, 1_000_000):
        owner = owners[start : start + 1_000_000]
        number = np.arange(start, start + owner.size)
        parts = [words.gather(random_numbers.integers(0, len(WORDS), owner.size)) for _ in range(4)]
        source = pl.Series(SOURCES).gather(random_numbers.integers(0, len(SOURCES), owner.size))
        first = np.concatenate([[start == 0 or owner[0] != owners[start - 1]], owner[1:] != owner[:-1]])
        frame = pl.DataFrame({"cui": cuis.gather(owner), "sab": source, "n": number, "first": first}).with_columns(
            name=pl.concat_str([*parts, pl.Series(number).cast(pl.String)], separator=" "),
            ts=pl.when("first").then(pl.lit("P")).otherwise(pl.lit("S")),
            pref=pl.when("first").then(pl.lit("Y")).otherwise(pl.lit("N")),
            id=pl.col("n").cast(pl.String).str.zfill(8),
        )
        yield _row(frame, "cui|ENG|ts|L1234567|PF|S1234567|pref|id||id|id|sab|PT|id|name|0|N|256")


def _relations(cuis: pl.Series, count: int, random_numbers: np.random.Generator):  # type: ignore[no-untyped-def]
    for start in range(0, count // 2, 1_000_000):
        size = min(1_000_000, count // 2 - start)
        # Cubes of uniform numbers crowd at the first of a shuffled order: a few hubs, many leaves.
        head = random_numbers.integers(0, cuis.len(), size)
        tail = (random_numbers.random(size) ** 3 * cuis.len()).astype(np.int64) * 7_919 % cuis.len()
        kind = random_numbers.integers(0, len(RELA), size)
        source = pl.Series(SOURCES).gather(random_numbers.integers(0, len(SOURCES), size))
        number = pl.Series(np.arange(start, start + size)).cast(pl.String).str.zfill(8)
        ends = {"head": cuis.gather(head), "tail": cuis.gather(tail), "sab": source, "n": number}
        for first, second, labels in (("head", "tail", RELA), ("tail", "head", INVERSE)):
            frame = pl.DataFrame({**ends, "rela": pl.Series(labels).gather(kind)})
            yield _row(frame, f"{second}|A12345678|CUI|RO|{first}|A12345678|CUI|rela|n||sab|sab|||N|")
