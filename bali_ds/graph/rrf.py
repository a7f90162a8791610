"""Reader of the UMLS Rich Release Format (UMLS reference manual, chapter 3)."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from bali_ds.errors import InputError, nearest
from bali_ds.graph.delimited import read_delimited
from bali_ds.graph.identifiers import source_abbreviation
from bali_ds.graph.relations import UMLS_RELATIONS
from bali_ds.graph.source import Report, Table, apply_filters, split_codes

# All columns in order. Each row ends in a bar, so an empty last column follows.
COLUMNS = {
    "MRCONSO": "CUI LAT TS LUI STT SUI ISPREF AUI SAUI SCUI SDUI SAB TTY CODE STR SRL SUPPRESS CVF",
    "MRREL": "CUI1 AUI1 STYPE1 REL CUI2 AUI2 STYPE2 RELA RUI SRUI SAB SL RG DIR SUPPRESS CVF",
    "MRSTY": "CUI TUI STN STY ATUI CVF",
    "MRDEF": "CUI AUI ATUI SATUI SAB DEF SUPPRESS CVF",
    "MRRANK": "RANK SAB TTY SUPPRESS",
    "MRSAB": "VCUI RCUI VSAB RSAB SON SF SVER VSTART VEND IMETA RMETA SLC SCC SRL TFR CFR CXTY TTYL ATNL LAT CENC "
    "CURVER SABIN SSN SCIT",
    "MRCUI": "CUI1 VER REL RELA MAPREASON CUI2 MAPIN",
    "MRDOC": "DOCKEY VALUE TYPE EXPL",
}
_UNRELATED = ("XR", "DEL")
_QUALIFIERS = ("AQ", "QB")
_QUALIFIER_TERM_TYPES = ("QAB", "QEV", "QSV", "TQ")


@dataclass(frozen=True)
class RrfFilter:
    """Which rows of a release to keep.

    Attributes:
        languages: LAT codes of the names to keep, the first preferred; () keeps all.
        sources: SABs to keep; () keeps all.
        term_types: TTYs of the names to keep; () keeps all.
        license: highest SRL (source restriction level, 0 to 9) to keep; relations and definitions, which have no SRL,
            take that of their source in MRSAB or MRCONSO.
        suppressed: whether to keep rows that SUPPRESS marks as obsolete or suppressible.
        raw_relations: whether to keep relations as they are. Otherwise facts about qualifiers and siblings and the
            names of MeSH qualifiers, which say nothing about a concept, are dropped, and REL is put into words where
            RELA is empty.
    """

    languages: tuple[str, ...] = ("ENG",)
    sources: tuple[str, ...] = ()
    term_types: tuple[str, ...] = ()
    license: int = 9
    suppressed: bool = False
    raw_relations: bool = False


class RrfSource:
    """Reader of a folder of RRF files, plain or gzip-compressed, whole or in parts.

    MRCONSO is required; MRREL, MRSTY, MRDEF, MRRANK, MRSAB, MRCUI and MRDOC are used if they exist.

    Raises:
        InputError: the folder has no MRCONSO, or has a file twice.
    """

    mirrored = True  # the UMLS states every relation from both ends

    def __init__(self, folder: Path, row_filter: RrfFilter | None = None) -> None:
        self.folder = Path(folder)
        self.filter = row_filter or RrfFilter()
        self.report: Report = {}
        self.warnings: list[str] = []
        self._restricted: set[str] = set()
        self._files = {name: parts for name in COLUMNS if (parts := _find(self.folder, name))}
        if "MRCONSO" not in self._files:
            raise InputError(
                f"{self.folder}: contains no MRCONSO.RRF or MRCONSO.RRF.gz; pass the META folder of a release"
            )

    def concepts(self) -> Iterator[tuple[Table, pl.DataFrame]]:
        """Yield names and codes, semantic types, definitions and retired identifiers."""
        for frame in self._read("MRSAB", "RSAB", "SRL"):
            self._note_licenses(frame.rename({"RSAB": "SAB"}))
        yield from self._atoms()
        for frame in self._read("MRSTY", "CUI", "TUI"):
            yield "types", frame.select(cui="CUI", type="TUI")
        for frame in self._read("MRDEF", "CUI", "SAB", "DEF", "SUPPRESS"):
            frame = apply_filters(frame, self._counts("MRDEF"), {**self._common_filters(), **self._license_filter()})
            yield "definitions", frame.select(cui="CUI", text="DEF")
        for frame in self._read("MRCUI", "CUI1", "REL", "CUI2"):
            frame = apply_filters(frame, self._counts("MRCUI"), {"not a synonym": pl.col("REL") == "SY"})
            yield "retired", frame.select(old="CUI1", cui="CUI2")

    def relations(self) -> Iterator[pl.DataFrame]:
        """Yield facts: a row reads "CUI2 is RELA (or else REL) of CUI1"."""
        rel = pl.col("REL") if self.filter.raw_relations else pl.col("REL").replace(UMLS_RELATIONS)
        for frame in self._read("MRREL", "CUI1", "REL", "CUI2", "RELA", "SAB", "SUPPRESS"):
            filters = {
                "not related": ~pl.col("REL").is_in(_UNRELATED),
                **self._common_filters(),
                **self._license_filter(),
                **self._preset(),
            }
            label = pl.when(pl.col("RELA") != "").then("RELA").otherwise(rel)
            frame = apply_filters(frame, self._counts("MRREL"), filters)
            yield frame.select(head="CUI2", relation=label, tail="CUI1", source="SAB")

    def inverses(self) -> dict[str, str]:
        """Return the inverse of each relation that MRDOC documents."""
        pairs: dict[str, str] = {}
        for frame in self._read("MRDOC", "VALUE", "TYPE", "EXPL"):
            frame = frame.filter(pl.col("TYPE").is_in(["rela_inverse", "rel_inverse"]) & (pl.col("EXPL") != ""))
            pairs |= dict(zip(frame["VALUE"], frame["EXPL"], strict=True))
        return pairs

    def _atoms(self) -> Iterator[tuple[Table, pl.DataFrame]]:
        ranks = self._ranks()
        wanted = ["CUI", "LAT", "TS", "STT", "ISPREF", "SAB", "TTY", "CODE", "STR", "SRL", "SUPPRESS"]
        languages: set[str] = set()
        sources: set[str] = set()
        for frame in self._read("MRCONSO", *wanted):
            languages |= set(frame["LAT"].unique())
            sources |= set(frame["SAB"].unique())
            self._note_licenses(frame)
            frame = apply_filters(frame, self._counts("MRCONSO"), self._atom_filters())
            frame = frame.join(ranks, on=["SAB", "TTY", "SUPPRESS"], how="left", maintain_order="left")
            frame = frame.with_columns(preference=self._preference())
            yield "names", frame.select("preference", cui="CUI", name="STR")
            codes = frame.filter(~pl.col("CODE").is_in(["", "NOCODE"])).select(
                "preference", cui="CUI", source="SAB", code="CODE"
            )
            yield "codes", split_codes(codes)
        self._refuse_misspelled("--language", self.filter.languages, languages)
        self._refuse_misspelled("--source", self.filter.sources, sources)

    def _refuse_misspelled(self, option: str, wanted: tuple[str, ...], present: set[str]) -> None:
        """Refuse a value that no row has, if a similar one or the UMLS abbreviation of its vocabulary is there."""
        for value in wanted:
            abbreviation = source_abbreviation(value)
            similar = abbreviation if abbreviation in present else nearest(value, present)
            if value not in present and similar:
                raise InputError(f"{option} {value}: is not in {self._files['MRCONSO'][0]}; did you mean {similar}?")

    def _preference(self) -> pl.Expr:
        """Lower is better: language, not suppressed, rank of source and term type, preferred form."""
        languages = pl.col("LAT").replace_strict(
            list(self.filter.languages), list(range(len(self.filter.languages))), default=99, return_dtype=pl.Int64
        )
        form = (pl.col("TS") != "P").cast(pl.Int64) * 4 + (pl.col("STT") != "PF") * 2 + (pl.col("ISPREF") != "Y")
        rank = 9999 - pl.col("rank").fill_null(0)
        return ((languages * 2 + (pl.col("SUPPRESS") != "N")) * 10_000 + rank) * 8 + form

    def _ranks(self) -> pl.DataFrame:
        schema = {"SAB": pl.String, "TTY": pl.String, "SUPPRESS": pl.String, "rank": pl.Int64}
        frames = [frame.rename({"RANK": "rank"}) for frame in self._read("MRRANK", "RANK", "SAB", "TTY", "SUPPRESS")]
        if not frames:
            return pl.DataFrame(schema=schema)
        ranks = pl.concat(frames).with_columns(pl.col("rank").cast(pl.Int64, strict=False))
        if ranks["rank"].is_null().any() or ranks["rank"].max() > 9999:  # type: ignore[operator]
            raise InputError(f"{self._files['MRRANK'][0]}: a rank is not a number below 10000; download it again")
        return ranks.select(schema.keys()).unique(["SAB", "TTY", "SUPPRESS"], keep="first", maintain_order=True)

    def _atom_filters(self) -> dict[str, pl.Expr]:
        filters = {"no name": pl.col("STR") != "", **self._common_filters()}
        if self.filter.languages:
            filters["language"] = pl.col("LAT").is_in(self.filter.languages)
        if self.filter.term_types:
            filters["term type"] = pl.col("TTY").is_in(self.filter.term_types)
        if self.filter.license < 9:
            filters["license"] = _level() <= self.filter.license
        if not self.filter.raw_relations:
            of_mesh = pl.col("SAB").str.starts_with("MSH")
            filters["qualifier term"] = ~(of_mesh & pl.col("TTY").is_in(_QUALIFIER_TERM_TYPES))
        return filters

    def _preset(self) -> dict[str, pl.Expr]:
        if self.filter.raw_relations:
            return {}
        is_sibling = (pl.col("REL") == "SIB") | pl.col("RELA").str.starts_with("sib_in_")
        return {"qualifier": ~pl.col("REL").is_in(_QUALIFIERS), "sibling": ~is_sibling}

    def _license_filter(self) -> dict[str, pl.Expr]:
        return {"license": ~pl.col("SAB").is_in(sorted(self._restricted))} if self._restricted else {}

    def _note_licenses(self, frame: pl.DataFrame) -> None:
        if self.filter.license < 9:
            self._restricted |= set(frame.filter(_level() > self.filter.license)["SAB"].unique())

    def _common_filters(self) -> dict[str, pl.Expr]:
        filters = {}
        if not self.filter.suppressed:
            filters["suppressed"] = pl.col("SUPPRESS") == "N"
        if self.filter.sources:
            filters["source"] = pl.col("SAB").is_in(self.filter.sources)
        return filters

    def _read(self, name: str, *wanted: str) -> Iterator[pl.DataFrame]:
        if name not in self._files:
            return
        columns = [*COLUMNS[name].split(), "end"]
        file, *parts = self._files[name]
        for frame in read_delimited(file, wanted, delimiter="|", columns=columns, parts=parts):
            self._counts(name)["rows"] += frame.height
            yield frame

    def _counts(self, name: str) -> Counter[str]:
        return self.report.setdefault(f"{self.folder.name}/{name}", Counter())


def _level() -> pl.Expr:
    """Return the restriction level of a row, the highest if it is not a number."""
    return pl.col("SRL").cast(pl.Int64, strict=False).fill_null(9)


def _find(folder: Path, name: str) -> tuple[Path, ...]:
    """Return the parts of a file in their order, most often one; () if there is none.

    NLM ships large files as NAME.RRF.aa.gz, NAME.RRF.ab.gz and so on.
    """
    pattern = re.compile(rf"{name}\.RRF(?:\.((?!gz)[a-z]{{2}}))?(?:\.gz)?", re.IGNORECASE)
    bases = [base for base in (folder, folder / "META") if base.is_dir()]
    found = {
        path: match for base in bases for path in sorted(base.iterdir()) if (match := pattern.fullmatch(path.name))
    }
    letters = [(match[1] or "").lower() for match in found.values()]
    if letters[1:] and (not all(letters) or len(set(letters)) < len(letters)):
        first, second, *_ = found
        raise InputError(f"{first}: exists twice, also as {second}; remove one")
    for number, part in enumerate(filter(None, letters)):
        expected = f"{chr(ord('a') + number // 26)}{chr(ord('a') + number % 26)}"
        if part != expected:
            raise InputError(f"{folder}: has part {part} of {name}.RRF but not part {expected}; download all parts")
    return tuple(found)
