import gzip
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bali_ds.cli import main
from bali_ds.errors import InputError
from bali_ds.graph import delimited
from bali_ds.graph.builder import build_graph
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.relations import inverse_name
from bali_ds.graph.rrf import COLUMNS, RrfFilter, RrfSource
from bali_ds.inference.context import verbalize
from tests.graph import plain_rrf

CUIS = ["C0000001", "C0000002", "C0000003", "C0000007", "C10", "MONDO:0000001", "Ω"]
TEXT = st.text(st.characters(exclude_characters="|\r\n", exclude_categories=["Cs"]), max_size=12)
LABELS = [("RO", "isa"), ("CHD", ""), ("RB", ""), ("RO", ""), ("SY", ""), ("RO", "part_of"), ("RO", "has_thing"),
          ("RO", "may_be_treated_by"), ("RO", "causes"), ("XR", ""), ("RO", "inverse_causes"), ("AQ", ""), ("QB", ""),
          ("SIB", ""), ("SIB", "sib_in_isa"), ("RQ", ""), ("PAR", "")]  # fmt: skip


def row(name: str, **values: str) -> str:
    return "|".join(values.get(column, "") for column in COLUMNS[name].split()) + "|"


@st.composite
def atoms(draw) -> str:
    one = lambda *choices: draw(st.sampled_from(choices))  # noqa: E731
    return row(
        "MRCONSO", CUI=one(*CUIS), LAT=one("ENG", "ENG", "FRE"), TS=one("P", "S"), STT=one("PF", "VO"),
        ISPREF=one("Y", "N"), SAB=one("MSH", "NCI"), TTY=one("PT", "SY", "TQ"), CODE=draw(TEXT), STR=draw(TEXT),
        SRL=one("0", "4", "9"), SUPPRESS=one("N", "N", "N", "O", "Y"),
    )  # fmt: skip


@st.composite
def facts(draw) -> list[str]:
    """MRREL rows of a relation, from one end or from both."""
    first, second = draw(st.sampled_from([*CUIS, "C9"])), draw(st.sampled_from(CUIS))
    rel, rela = draw(st.sampled_from(LABELS))
    shared = {"SAB": draw(st.sampled_from(["MSH", "NCI"])), "SUPPRESS": draw(st.sampled_from(["N", "N", "N", "O"]))}
    lines_of_fact = [row("MRREL", CUI1=first, REL=rel, CUI2=second, RELA=rela, **shared)]
    if draw(st.booleans()):
        inverse = {"RELA": inverse_name(rela), "REL": "RO" if rel == "RO" else inverse_name(rel)}
        inverse = inverse if rela else {"REL": inverse_name(rel)}
        if rel != "XR":
            lines_of_fact.append(row("MRREL", CUI1=second, CUI2=first, **inverse, **shared))
    return lines_of_fact


@st.composite
def releases(draw) -> dict[str, bytes]:
    """RRF files in one of the forms that releases come in."""
    relations = draw(st.lists(facts(), max_size=15))
    types = st.builds(lambda cui, tui: row("MRSTY", CUI=cui, TUI=tui), st.sampled_from([*CUIS, "C9"]), TEXT)
    files = {
        "MRCONSO": draw(st.lists(atoms(), min_size=1, max_size=15)),
        "MRREL": [line for lines in relations for line in lines],
        "MRSTY": draw(st.lists(types, max_size=5)),
        "MRRANK": draw(st.sampled_from([[], ["0300|NCI|PT|N|", "0200|MSH|SY|N|", "0100|MSH|PT|O|"]])),
    }
    written = {}
    for name, lines in files.items():
        newline = draw(st.sampled_from(["\n", "\r\n"]))
        text = (newline.join(lines) + draw(st.sampled_from([newline, ""])) if lines else "").encode()
        compressed = draw(st.booleans())
        written[f"{name}.RRF.gz" if compressed else f"{name}.RRF"] = gzip.compress(text) if compressed else text
    return written


FILTERS = st.builds(
    RrfFilter,
    languages=st.sampled_from([("ENG",), ("FRE", "ENG"), ()]),
    sources=st.sampled_from([(), (), ("MSH",)]),
    term_types=st.sampled_from([(), (), ("PT",)]),
    license=st.sampled_from([9, 9, 3]),
    suppressed=st.booleans(),
    raw_relations=st.booleans(),
)


@settings(max_examples=int(os.environ.get("BALI_EXAMPLES", "60")), deadline=None)
@given(releases(), FILTERS)
def test_any_release_is_read_like_the_reference_reads_it(files, kept):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        names = plain_rrf.names(folder, kept)
        if not names:
            with pytest.raises(InputError, match="contain no concept"):
                build_graph([RrfSource(folder, kept)], folder / "graph")
            return
        report = build_graph([RrfSource(folder, kept)], folder / "graph")
        graph = KnowledgeGraph.open(folder / "graph", verify=True)
        assert {graph.cui(concept): graph.names(concept) for concept in range(graph.num_concepts)} == names
        assert list(names) == [graph.cui(concept) for concept in range(graph.num_concepts)]
        stored = plain_rrf.stored_facts(graph)
        wanted = plain_rrf.facts(folder, kept, names)
        assert sorted(stored) == sorted(wanted)
        assert report["edges"] == graph.num_edges == len(wanted) // 2
        for concept, cui in enumerate(names):
            types = {line["TUI"] for line in plain_rrf.read(folder, "MRSTY") if line["CUI"] == cui}
            assert graph.semantic_types(concept) == tuple(sorted(types, key=str.encode))


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.RRF").write_text(text)
    return folder


def atom(cui: str, name: str, **values: str) -> str:
    return row("MRCONSO", **{"CUI": cui, "STR": name, "LAT": "ENG", "SUPPRESS": "N", "SRL": "0", **values}) + "\n"


def relation(first: str, rel: str, second: str, rela: str = "", source: str = "NCI") -> str:
    return row("MRREL", CUI1=first, REL=rel, CUI2=second, RELA=rela, SAB=source, SUPPRESS="N") + "\n"


@pytest.fixture
def two(tmp_path: Path) -> Path:
    return write(tmp_path, MRCONSO=atom("C1", "one") + atom("C2", "two") + atom("C3", "three"))


def built(folder: Path) -> KnowledgeGraph:
    build_graph([RrfSource(folder)], folder / "graph")
    return KnowledgeGraph.open(folder / "graph")


def test_inverse_names_are_inferred_from_the_data(two):
    lines = relation("C2", "RO", "C1", "regulates") + relation("C1", "RO", "C2", "under_control")
    lines += relation("C3", "RO", "C2", "regulates") + relation("C2", "RO", "C3", "under_control")
    graph = built(write(two, MRREL=lines))
    assert graph.num_edges == 2
    assert (graph.relations, graph.inverse_relations) == (("regulates",), ("under_control",))


def test_inverse_names_are_read_from_mrdoc(two):
    lines = relation("C2", "RO", "C1", "regulates") + relation("C3", "RO", "C1", "under_control")
    doc = "RELA|regulates|rela_inverse|under_control|\nRELA|under_control|rela_inverse|regulates|\n"
    graph = built(write(two, MRREL=lines, MRDOC=doc))
    assert (graph.relations, graph.inverse_relations) == (("regulates",), ("under_control",))
    assert set(plain_rrf.stored_facts(graph)) == {
        ("C1", "regulates", "C2", "NCI"), ("C2", "under_control", "C1", "NCI"),
        ("C1", "under_control", "C3", "NCI"), ("C3", "regulates", "C1", "NCI"),
    }  # fmt: skip


def test_symmetric_relations_are_one_fact(two):
    graph = built(write(two, MRREL=relation("C2", "SY", "C1") + relation("C1", "SY", "C2")))
    assert graph.num_edges == 1
    assert set(plain_rrf.stored_facts(graph)) == {
        ("C1", "synonym_of", "C2", "NCI"), ("C2", "synonym_of", "C1", "NCI"),
    }  # fmt: skip


def test_definitions_and_retired_identifiers(two):
    definition = row("MRDEF", CUI="C1", SAB="NCI", DEF='The "first"', SUPPRESS="N") + "\n"
    retired = "C8|2020AA|SY|||C2|Y|\nC9|2020AA|DEL||||N|\nC7|2020AA|RO|||C2|Y|\nC1|2020AA|SY|||C2|Y|\n"
    graph = built(write(two, MRDEF=definition, MRCUI=retired))
    assert graph.definitions(0) == ['The "first"']
    assert graph.definitions(1) == []
    assert graph.lookup(["C8", "C9", "C7", "C1", "C2"]).tolist() == [1, -1, -1, 0, 1]


def test_all_concepts_of_a_code_are_kept_and_the_preferred_is_first(tmp_path):
    ranks = "0002|MSH|MH|N|\n0001|MSH|ET|N|\n"
    lines = atom("C1", "one", SAB="MSH", TTY="ET", CODE="D1") + atom("C2", "two", SAB="MSH", TTY="MH", CODE="D1")
    lines += atom("C2", "2", SAB="HPO", TTY="PT", CODE="HP:7") + atom("C2", "ii", SAB="SRC", TTY="PT", CODE="NOCODE")
    graph = built(write(tmp_path, MRCONSO=lines, MRRANK=ranks))
    assert graph.code_to_cuis("mesh", "D1") == ["C2", "C1"]
    assert graph.code_to_cuis("", "HP:7") == graph.code_to_cuis("HPO", "7") == ["C2"]
    assert graph.code_to_cuis("SRC", "NOCODE") == []


@pytest.mark.parametrize("with_mrsab", [False, True])
def test_license_holds_for_relations_and_definitions_too(tmp_path, with_mrsab):
    lines = atom("C1", "one", SAB="MSH") + atom("C2", "two", SAB="MSH")
    if not with_mrsab:
        lines += atom("C2", "closed", SAB="SNOMEDCT_US", SRL="9")
    write(tmp_path, MRCONSO=lines, MRREL=relation("C1", "CHD", "C2", source="SNOMEDCT_US")
          + relation("C1", "RO", "C2", source="MSH"))  # fmt: skip
    if with_mrsab:
        write(
            tmp_path, MRSAB=row("MRSAB", RSAB="SNOMEDCT_US", SRL="9") + "\n" + row("MRSAB", RSAB="MSH", SRL="0") + "\n"
        )
    definition = row("MRDEF", CUI="C1", SAB="SNOMEDCT_US", DEF="closed", SUPPRESS="N") + "\n"
    write(tmp_path, MRDEF=definition)
    build_graph([RrfSource(tmp_path, RrfFilter(license=3))], tmp_path / "graph")
    graph = KnowledgeGraph.open(tmp_path / "graph")
    assert graph.relations == ("related_to",)
    assert graph.definitions(0) == []
    assert graph.names(1) == ["two"]


def test_relations_say_something_in_the_right_direction(two):
    """CUI2 is REL of CUI1: C1 is a child of C2, and narrower than C3."""
    lines = relation("C2", "CHD", "C1") + relation("C1", "PAR", "C2") + relation("C3", "RN", "C1", source="MSH")
    lines += relation("C1", "AQ", "C3") + relation("C3", "QB", "C1") + relation("C1", "SIB", "C3", "sib_in_isa")
    write(two, MRREL=lines + relation("C3", "RO", "C2", source="MSH") + relation("C3", "RO", "C2"))
    (two / "MRCONSO.RRF").open("a").write(atom("C4", "therapeutic aspects", SAB="MSH", TTY="TQ", CODE="Q000628"))
    report = build_graph([RrfSource(two)], two / "graph")
    graph = KnowledgeGraph.open(two / "graph")
    assert [fact for fact in plain_rrf.stored_facts(graph) if fact[0] in ("C1", "C3")] == [
        ("C1", "child_of", "C2", "NCI"), ("C1", "narrower_than", "C3", "MSH"),
        ("C3", "broader_than", "C1", "MSH"), ("C3", "related_to", "C2", "MSH|NCI"),
    ]  # fmt: skip
    assert verbalize(graph, 0, graph.relations.index("child_of"), 1) == "one child of two"
    read = {name.split("/")[1]: counts for name, counts in report["read"].items()}
    assert read["MRREL"] == {"rows": 8, "dropped: qualifier": 2, "dropped: sibling": 1}
    assert read["MRCONSO"] == {"rows": 4, "dropped: qualifier term": 1}
    build_graph([RrfSource(two, RrfFilter(raw_relations=True))], two / "raw")
    raw = KnowledgeGraph.open(two / "raw")
    assert raw.relations == ("AQ", "CHD", "RN", "RO", "sib_in_isa")
    assert raw.num_concepts == 4


def test_files_in_parts_and_in_lower_case(two):
    """Parts continue each other in any place, as one stream; a missing part is refused."""
    text = (relation("C2", "RO", "C1", "isa") + relation("C3", "RO", "C1", "causes")).encode()
    whole = built(write(two, MRREL=text.decode())).fingerprint
    (two / "MRREL.RRF").unlink()
    (two / "MRCONSO.RRF").rename(two / "mrconso.rrf")
    for number, part in enumerate((text[:9], text[9:40], text[40:])):
        (two / f"MRREL.RRF.a{'abc'[number]}.gz").write_bytes(gzip.compress(part))
    assert built(two).fingerprint == whole
    (two / "MRREL.RRF.ab.gz").unlink()
    with pytest.raises(InputError, match=r"has part ac of MRREL.RRF but not part ab; download all parts"):
        RrfSource(two)


def test_retired_identifiers_are_followed_to_the_end(two):
    retired = "C9|2020AA|SY|||C8|Y|\nC8|2021AA|SY|||C7|Y|\nC7|2022AA|SY|||C2|Y|\n"
    cycle = "C5|2020AA|SY|||C6|Y|\nC6|2021AA|SY|||C5|Y|\n"
    graph = built(write(two, MRCUI=retired + cycle))
    assert graph.lookup(["C9", "C8", "C7", "C6", "C5"]).tolist() == [1, 1, 1, -1, -1]


def test_dropped_rows_are_counted_by_reason(two):
    write(two, MRREL=relation("C2", "RO", "C1") + relation("C1", "XR", "C2") + relation("C3", "RO", "C3"))
    (two / "MRCONSO.RRF").open("a").write(atom("C4", "quatre", LAT="FRE") + atom("C5", "old", SUPPRESS="O"))
    report = build_graph([RrfSource(two)], two / "graph")
    read = {name.split("/")[1]: counts for name, counts in report["read"].items()}
    assert read["MRCONSO"] == {"rows": 5, "dropped: language": 1, "dropped: suppressed": 1}
    assert read["MRREL"] == {"rows": 3, "dropped: not related": 1}
    assert report["dropped"]["self-relations"] == 1


def test_columns_are_those_of_the_reference_manual(tmp_path):
    """Rows in the documented order of columns, since the other tests write and read with the reader's own lists."""
    lines = "C0001175|ENG|P|L0001175|PF|S0010339|Y|A0019180||M0000245|D000163|MSH|MH|D000163|AIDS|0|N|256|\n"
    lines += "C0001175|ENG|S|L0001842|PF|S0011877|Y|A0021055||M0000245|D000163|MSH|ET|D000163|Acquired syndrome|0|N||\n"
    lines += "C0021051|ENG|P|L0021051|PF|S0049642|Y|A0070885||M0011150|D007153|MSH|MH|D007153|Deficiency|0|N||\n"
    lines += "C0000001|FRE|P|L1|PF|S1|Y|A1||||MSHFRE|PT|D1|Sida|3|N||\n"
    write(
        tmp_path,
        MRCONSO=lines,
        MRREL="C0021051|A0070885|AUI|CHD|C0001175|A0019180|AUI|isa|R1||MSH|MSH|||N||\n",
        MRSTY="C0001175|T047|B2.2.1.2.1|Disease or Syndrome|AT17683839|256|\n",
        MRDEF="C0001175|A0019180|AT1||MSH|An acquired defect.|N||\n",
        MRRANK="0400|MSH|MH|N|\n0100|MSH|ET|N|\n",
    )
    graph = built(tmp_path)
    assert [graph.cui(concept_id) for concept_id in range(graph.num_concepts)] == ["C0001175", "C0021051"]
    assert graph.names(0) == ["AIDS", "Acquired syndrome"]
    assert graph.semantic_types(0) == ("T047",)
    assert graph.definitions(0) == ["An acquired defect."]
    assert graph.code_to_cuis("MSH", "D000163") == ["C0001175"]
    assert set(plain_rrf.stored_facts(graph)) == {
        ("C0001175", "isa", "C0021051", "MSH"), ("C0021051", "inverse_isa", "C0001175", "MSH"),
    }  # fmt: skip


BAD = {
    "columns": (b"C1|ENG|\n", "line 4: 3 columns, expected 19"),
    "bar in a name": (atom("C4", "a|b").encode(), "line 4: 20 columns, expected 19"),
    "encoding": (atom("C4", "ä").encode("latin-1"), "line 4: byte 20 is not UTF-8"),
    "wide encoding": (atom("C4", "a").encode("utf-16"), "line 4: byte 1 is not UTF-8"),
    "carriage return": (atom("C4", "a\rb").encode(), "line 4: contains a carriage return"),
}


@pytest.mark.parametrize(("tail", "message"), BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("compressed", [False, True])
def test_bad_lines_are_named(two, tail, message, compressed):
    content = (two / "MRCONSO.RRF").read_bytes() + tail
    if compressed:
        (two / "MRCONSO.RRF").unlink()
        (two / "MRCONSO.RRF.gz").write_bytes(gzip.compress(content))
    else:
        (two / "MRCONSO.RRF").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        build_graph([RrfSource(two)], two / "graph")
    assert "\n" not in str(caught.value)
    assert not (two / "graph").exists()


def test_truncated_gz_is_refused(two):
    content = gzip.compress("".join(atom(f"C{number}", f"name {number}") for number in range(5000)).encode())
    (two / "MRCONSO.RRF").unlink()
    (two / "MRCONSO.RRF.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"MRCONSO\.RRF\.gz: line \d+: the compressed file is truncated"):
        build_graph([RrfSource(two)], two / "graph")
    (two / "MRCONSO.RRF.gz").write_bytes(content[:-4])
    with pytest.raises(InputError, match=r"MRCONSO\.RRF\.gz: line \d+: the compressed file is truncated"):
        build_graph([RrfSource(two)], two / "graph")
    assert sorted(path.name for path in two.iterdir()) == ["MRCONSO.RRF.gz"]


def test_lines_without_end_and_empty_files_are_read_in_bounded_memory(two, monkeypatch):
    monkeypatch.setattr(delimited, "_BLOCK_BYTES", 1 << 20)
    (two / "MRREL.RRF.gz").write_bytes(gzip.compress(relation("C2", "RO", "C1").encode() + b"x" * (1 << 22)))
    with pytest.raises(InputError, match=r"MRREL\.RRF\.gz: line 2: has more than 1 MiB"):
        built(two)
    (two / "MRREL.RRF.gz").write_bytes(gzip.compress(b"\n" * (1 << 24) + relation("C2", "RO", "C1").encode()))
    assert built(two).num_edges == 1


def test_files_that_exist_twice_are_refused(two):
    (two / "MRREL.RRF").write_text("")
    (two / "MRREL.RRF.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(InputError, match="exists twice"):
        RrfSource(two)


@pytest.mark.parametrize("kind", ["columns", "encoding", "truncated", "twice"])
def test_commands_refuse_damage_with_one_line(two, kind, capsys):
    lines = relation("C2", "RO", "C1").encode() * 500
    whole = gzip.compress(lines)
    (two / "MRREL.RRF.gz").write_bytes(whole)
    if kind == "truncated":
        (two / "MRREL.RRF.gz").write_bytes(whole[:-9])
    elif kind == "twice":
        (two / "MRREL.RRF").write_bytes(lines)
    else:
        (two / "MRREL.RRF.gz").write_bytes(gzip.compress(lines + BAD[kind][0]))
    before = sorted(two.iterdir())
    assert main(["graph", "build", "--rrf", str(two), "--out", str(two / "graph")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "MRREL.RRF" in said
    assert sorted(two.iterdir()) == before


def test_folder_without_names_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"contains no MRCONSO\.RRF"):
        RrfSource(tmp_path)
