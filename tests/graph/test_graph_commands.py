import json
import os
import random
import subprocess
import sys

import polars as pl
import pytest

from bali_ds.cli import main

PUBTATOR = """1|t|fever in influenza
1|a|aspirin helps
1\t0\t5\tfever\tDisease\tMESH:D005334
1\t19\t26\taspirin\tChemical\tC4

"""


@pytest.fixture
def graph(small_tables, tmp_path, capsys):
    assert main(["graph", "build", "--tsv", *map(str, small_tables), "--out", str(tmp_path / "graph")]) == 0
    out = capsys.readouterr().out
    assert "5 concepts, 9 names, 4 edges, 3 relations" in out
    assert "dropped: 1 self-relations" in out
    return str(tmp_path / "graph")


def test_the_report_of_a_build_lists_dropped_rows_by_reason(capsys, tmp_path):
    names = ["C1|ENG|P||PF||Y|||||X|PT|1|one|0|N||", "C1|FRE|P||PF||Y|||||X|PT|1|un|0|N||"]
    (tmp_path / "META").mkdir()
    (tmp_path / "META/MRCONSO.RRF").write_text("\n".join([*names, "C1|ENG|S||PF||Y|||||X|SY|1|i|0|O||"]))
    (tmp_path / "META/MRREL.RRF").write_text(
        "C1||CUI|RO|C1||CUI|causes|||X|X|||N||\nC1||CUI|RO|C9||CUI|causes|||X|X|||N||\n"
    )
    build = ["graph", "build", "--rrf", str(tmp_path / "META"), "--out", str(tmp_path / "graph")]
    assert main(build) == 2
    assert "state no fact between their concepts (dropped: 1 relations of unknown concepts" in capsys.readouterr().err
    assert not (tmp_path / "graph").exists()
    assert main([*build, "--names-only"]) == 0
    assert capsys.readouterr().out.splitlines()[:-1] == [
        "META/MRCONSO: 3 rows; dropped: 1 suppressed, 1 language",
        "META/MRREL: 2 rows",
        "dropped: 1 relations of unknown concepts",
        "dropped: 1 self-relations",
    ]


def printed(capsys, *arguments):
    assert main(["graph", *arguments]) == 0
    return capsys.readouterr().out


def test_stats_as_json_and_as_text(graph, capsys):
    report = json.loads(printed(capsys, "stats", graph, "--json"))
    assert (report["concepts"], report["names"], report["edges"], report["relations"]) == (5, 9, 4, 3)
    text = printed(capsys, "stats", graph)
    assert report["fingerprint"] in text
    assert "has_phenotype  1" in text


def test_stats_of_a_corpus(graph, tmp_path, capsys):
    (tmp_path / "corpus.txt").write_text(PUBTATOR)
    report = json.loads(printed(capsys, "stats", graph, "--json", "--corpus", f"pubtator:{tmp_path / 'corpus.txt'}"))
    assert report["corpus"]["documents_with_a_concept"] == 1
    assert report["corpus"]["known_mentions"] == report["corpus"]["mentions"] == 2


def test_show_by_identifier_and_by_code(graph, capsys):
    text = printed(capsys, "show", graph, "C1")
    assert text.startswith("C1  fever [T184 Sign or Symptom]\n  also pyrexia\n")
    assert "  phenotype_of (1)\n    C2  influenza  (HPOA)\n" in text
    assert printed(capsys, "show", graph, "MESH:D005334") == text
    facts = json.loads(printed(capsys, "show", graph, "C1", "--json"))["facts"]
    assert {fact["cui"] for fact in facts} == {"C2", "C3", "C4"}


def test_search_by_a_part_of_a_name(graph, capsys):
    """The whole name first, then preferred names; a text does not match across two names."""
    assert printed(capsys, "search", graph, "FLU").splitlines() == [
        "C2  influenza  (also flu)  [T047 Disease or Syndrome]"
    ]
    assert printed(capsys, "search", graph, "e").splitlines()[:2] == ["C1  fever  [T184 Sign or Symptom]", "C5  lonely"]
    assert json.loads(printed(capsys, "search", graph, "pyrexia", "--json")) == [
        {"cui": "C1", "name": "fever", "found": "pyrexia", "semantic_types": ["T184"]}
    ]
    assert printed(capsys, "search", graph, "feverpyrexia") == "no name contains 'feverpyrexia'\n"
    assert len(printed(capsys, "search", graph, "a", "--limit", "1").splitlines()) == 1


def test_names_are_a_dictionary_for_linking(graph, capsys):
    lines = printed(capsys, "names", graph).splitlines()
    assert lines[:3] == ["C1||fever", "C1||pyrexia", "C1||raised temperature"]
    assert len(lines) == 9


def test_an_export_replaces_no_file_unasked(graph, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    own = out / "edges.tsv"
    own.write_text("of the user")
    export = ["graph", "export", str(graph), "--format", "kgx", "--out", str(out)]
    assert main(export) == 2
    assert f"{own}: already exists; pass --overwrite" in capsys.readouterr().err
    assert own.read_text() == "of the user"
    assert not (out / "nodes.tsv").exists()
    assert main([*export, "--overwrite"]) == 0
    assert own.read_text().startswith("subject\t")


def test_exports(graph, tmp_path, capsys):
    """Each format holds the concepts and facts of the tables that the graph was built from."""
    facts = {("C1", "isa", "C3"), ("C2", "isa", "C3"), ("C2", "has_phenotype", "C1"), ("C4", "may_treat", "C1")}
    for name in ("scispacy", "pykeen", "neo4j", "kgx"):
        printed(capsys, "export", graph, "--format", name, "--out", str(tmp_path / name))
    concepts = [json.loads(line) for line in (tmp_path / "scispacy/knowledge_base.jsonl").read_text().splitlines()]
    fever = {
        "concept_id": "C1",
        "canonical_name": "fever",
        "aliases": ["pyrexia", "raised temperature"],
        "types": ["T184"],
    }
    assert concepts[0] == fever
    assert len(concepts) == 5
    triples = pl.read_csv(tmp_path / "pykeen/triples.tsv", separator="\t", has_header=False)
    assert set(triples.iter_rows()) == facts
    nodes, edges = (pl.read_csv(tmp_path / f"neo4j/{name}.csv") for name in ("nodes", "edges"))
    assert nodes.row(0) == ("C1", "fever", "pyrexia;raised temperature", "Concept;T184")
    assert set(edges.select(":START_ID", ":TYPE", ":END_ID").iter_rows()) == facts
    assert edges.filter(pl.col(":START_ID") == "C2", pl.col(":TYPE") == "isa")["sources:string[]"].to_list() == [
        "DOID;MONDO"
    ]
    nodes, edges = (pl.read_csv(tmp_path / f"kgx/{name}.tsv", separator="\t") for name in ("nodes", "edges"))
    assert nodes.row(1) == ("UMLS:C2", "biolink:NamedThing", "influenza", "flu")
    assert set(edges.select("subject", "relation", "object").iter_rows()) == {
        (f"UMLS:{head}", relation, f"UMLS:{tail}") for head, relation, tail in facts
    }


def test_prefix_columns_keep_vocabularies_apart(tmp_path, capsys):
    (tmp_path / "kg.csv").write_text("head_cui,hv,relation,tail_cui,tv,head_name,tail_name\n7,A,r,7,B,one,two\n")
    build = ["graph", "build", "--edges", str(tmp_path / "kg.csv"), "--out", str(tmp_path / "graph")]
    assert main([*build, "--names-only"]) == 0
    assert "warning: kg.csv: 1 identifiers have several preferred names (7: one, two)" in capsys.readouterr().out
    assert main([*build, "--prefix-column", "hv", "tv"]) == 0
    capsys.readouterr()
    assert printed(capsys, "names", str(tmp_path / "graph")) == "A:7||one\nB:7||two\n"
    assert main([*build, "--prefix-column", *"abcd"]) == 2


def test_misspelled_filters_are_answered_with_the_known_value(tmp_path, capsys):
    (tmp_path / "MRCONSO.RRF").write_text("C1|ENG|P||PF||Y|||||MSH|MH|1|one|0|N||\n")
    build = ["graph", "build", "--rrf", str(tmp_path), "--names-only", "--out", str(tmp_path / "graph")]
    for option, wrong, known in (("--language", "en", "ENG"), ("--source", "MESH", "MSH"), ("--source", "msh", "MSH")):
        assert main([*build, option, wrong]) == 2
        assert (
            f"{option} {wrong}: is not in {tmp_path / 'MRCONSO.RRF'}; did you mean {known}?" in capsys.readouterr().err
        )


def test_facts_are_chosen_by_relation(small_tables, tmp_path, capsys):
    build = ["graph", "build", "--tsv", *map(str, small_tables), "--out", str(tmp_path / "graph")]
    for chosen, relations, dropped in (
        (["--keep-relation", "inverse_isa", "may_treat"], {"isa": 2, "may_treat": 1}, "are not kept"),
        (["--drop-relation", "phenotype_of"], {"isa": 2, "may_treat": 1}, "are dropped"),
    ):
        assert main([*build, *chosen]) == 0
        assert f"dropped: 1 facts of relations that {dropped}\n" in capsys.readouterr().out
        assert json.loads(printed(capsys, "stats", str(tmp_path / "graph"), "--json"))["edges_by_relation"] == relations
    assert main([*build, "--drop-relation", "is_a"]) == 2
    assert capsys.readouterr().err == "bali-ds: relation is_a: is not in the sources; did you mean isa?\n"


@pytest.mark.parametrize("cui", ["C1", "C5"])
def test_show_draws(graph, tmp_path, capsys, cui):
    printed(capsys, "show", graph, cui, "--png", str(tmp_path / "one.png"))
    printed(capsys, "show", graph, cui, "--png", str(tmp_path / "two.png"))
    content = (tmp_path / "one.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content == (tmp_path / "two.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "GRAPH", "C99"], "C99: is not a concept"),
        (["show", "GRAPH", "C1", "--png", "/proc/x.png"], "cannot be written"),
        (["stats", "nowhere"], "nowhere: is not a graph"),
        (["search", "GRAPH", " "], "the text is empty"),
        (["fetch", "monod", "--out", "x"], "did you mean mondo?"),
        (["export", "GRAPH", "--format", "kgx", "--out", "/proc/x"], "cannot be written"),
        (["build", "--out", "x"], "no source"),
        (["build", "--rrf", "nowhere", "--out", "x"], "contains no MRCONSO"),
        (["build", "--obo", "nowhere.obo", "--out", "x"], "nowhere.obo: cannot be read"),
        (["build", "--mesh", "nowhere.xml", "--out", "x"], "nowhere.xml: cannot be read"),
        (["build", "--edges", "nowhere.csv", "--out", "x"], "nowhere.csv: cannot be read"),
        (["build", "--edges", "nowhere.csv", "--column", "cui", "--out", "x"], "write NAME=COLUMN"),
        (["build", "--edges", "nowhere.csv", "--tsv-preset", "primkg", "--out", "x"], "did you mean primekg?"),
    ],
)
def test_mistakes_are_one_line_and_status_two(graph, capsys, arguments, message):
    assert main(["graph", *(graph if argument == "GRAPH" else argument for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_bytes_do_not_depend_on_hash_seed_threads_or_order(small_tables, tmp_path):
    nodes, edges = small_tables
    written = []
    for number in range(3):
        for table in (nodes, edges):
            header, *rows = table.read_text().splitlines(keepends=True)
            random.Random(number).shuffle(rows)
            table.write_text("".join([header, *rows]))
        out = tmp_path / f"graph {number}"
        command = [
            sys.executable,
            "-m",
            "bali_ds",
            "graph",
            "build",
            "--tsv",
            str(nodes),
            str(edges),
            "--out",
            str(out),
        ]
        environment = {**os.environ, "PYTHONHASHSEED": str(number), "POLARS_MAX_THREADS": str(number + 1)}
        subprocess.run(command, check=True, capture_output=True, env=environment)
        written.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert written[0] == written[1] == written[2]
