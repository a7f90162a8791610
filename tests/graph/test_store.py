import pickle

import numpy as np
import pytest

from bali_ds.errors import InputError
from bali_ds.graph.builder import FactFilter, build_graph
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.tables import TableSource


def facts(graph: KnowledgeGraph) -> set[tuple[str, str, str, str]]:
    """Return every fact from both ends, as (concept, relation read from the concept, neighbor, source)."""
    return {
        (
            graph.cui(concept),
            graph.relation_name(int(graph.edge_relations[entry])),
            graph.cui(int(graph.edge_targets[entry])),
            graph.sources[graph.edge_sources[entry]],
        )
        for concept in range(graph.num_concepts)
        for entry in range(graph.edge_offsets[concept], graph.edge_offsets[concept + 1])
    }


def test_concepts_names_and_types(small_graph):
    assert small_graph.num_concepts == 5
    assert [small_graph.cui(concept) for concept in range(5)] == ["C1", "C2", "C3", "C4", "C5"]
    assert small_graph.names(0) == ["fever", "pyrexia", "raised temperature"]
    assert small_graph.preferred_name(3) == "aspirin"
    assert small_graph.name(int(small_graph.name_offsets[3])) == "aspirin"
    assert small_graph.semantic_types(3) == ("T109", "T121")
    assert small_graph.semantic_types(2) == ()
    assert small_graph.num_names == 9


def test_lookup_returns_minus_one_for_unknown_identifiers(small_graph):
    found = small_graph.lookup(["C4", "C", "", "C11", "c1", "C1", "Ω"])
    assert found.dtype == np.int32
    assert found.tolist() == [3, -1, -1, -1, -1, 0, -1]
    assert small_graph.lookup([]).shape == (0,)


def test_facts_are_listed_from_both_ends_and_duplicates_collapse(small_graph):
    """A fact of two sources is one fact with both."""
    assert small_graph.num_edges == 4
    assert facts(small_graph) == {
        ("C2", "has_phenotype", "C1", "HPOA"), ("C1", "phenotype_of", "C2", "HPOA"),
        ("C2", "isa", "C3", "DOID|MONDO"), ("C3", "inverse_isa", "C2", "DOID|MONDO"),
        ("C1", "isa", "C3", "MONDO"), ("C3", "inverse_isa", "C1", "MONDO"),
        ("C4", "may_treat", "C1", "MED-RT"), ("C1", "may_be_treated_by", "C4", "MED-RT"),
    }  # fmt: skip


def test_dropped_facts_are_counted(small_tables, tmp_path):
    report = build_graph([TableSource(*small_tables)], tmp_path / "out")
    assert report["dropped"] == {
        "relations of unknown concepts": 1, "self-relations": 1, "facts held out": 0,
    }  # fmt: skip


def test_facts_between_held_out_pairs_are_dropped(small_tables, tmp_path):
    (tmp_path / "pairs.tsv").write_text("head_cui\ttail_cui\nC3\tC2\nC4\tC1\nC4\tC99\n")
    held_out = FactFilter(held_out=tmp_path / "pairs.tsv")
    report = build_graph([TableSource(*small_tables)], tmp_path / "out", held_out)
    assert report["dropped"]["facts held out"] == 2
    graph = KnowledgeGraph.open(tmp_path / "out")
    assert facts(graph) == {
        ("C2", "has_phenotype", "C1", "HPOA"), ("C1", "phenotype_of", "C2", "HPOA"),
        ("C1", "isa", "C3", "MONDO"), ("C3", "inverse_isa", "C1", "MONDO"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("source", "code"), [("MESH", "D005334"), ("msh", "MESH:D005334"), ("", "mesh:D005334"), ("hp", "0001945")]
)
def test_codes_find_concepts(small_graph, source, code):
    assert small_graph.code_to_cuis(source, code) == ["C1"]


def test_unknown_codes_find_nothing(small_graph):
    assert small_graph.code_to_cuis("MESH", "D999999") == []
    assert small_graph.code_to_cuis("NOWHERE", "1") == []


def test_row_order_and_repetition_change_no_byte(small_tables, tmp_path):
    nodes, edges = small_tables
    build_graph([TableSource(nodes, edges)], tmp_path / "one")
    for table in (nodes, edges):
        header, *rows = table.read_text().splitlines(keepends=True)
        table.write_text("".join([header, *reversed(rows), *rows]))
    build_graph([TableSource(nodes, edges)], tmp_path / "two")
    for column in (tmp_path / "one").iterdir():
        assert column.read_bytes() == (tmp_path / "two" / column.name).read_bytes(), column.name


def test_pickle_holds_only_the_path(small_graph):
    dumped = pickle.dumps(small_graph)
    assert len(dumped) < 500
    assert pickle.loads(dumped).fingerprint == small_graph.fingerprint


def test_columns_are_mapped_and_read_only(small_graph):
    for column in (small_graph.edge_offsets, small_graph.name_offsets):
        assert not column.flags.writeable
        assert not column.flags.owndata


def test_missing_or_changed_files_are_refused(small_graph):
    column = small_graph.path / "edges.entries.npy"
    whole = column.read_bytes()
    for changed in (whole[:-1], whole + b"x", whole[:9] + b"!" + whole[10:]):
        column.write_bytes(changed)
        with pytest.raises(InputError, match=r"edges\.entries\.npy: (has .*, but its header|is not a valid npy)"):
            KnowledgeGraph.open(small_graph.path)
    column.unlink()
    with pytest.raises(InputError, match=r"edges\.entries\.npy: cannot be read"):
        KnowledgeGraph.open(small_graph.path)
    with pytest.raises(InputError, match="is not a graph"):
        KnowledgeGraph.open(small_graph.path / "nowhere")


def test_changed_contents_are_refused_when_verified(small_graph):
    column = small_graph.path / "names.text.npy"
    content = bytearray(column.read_bytes())
    content[-1] ^= 1
    column.write_bytes(content)
    KnowledgeGraph.open(small_graph.path)
    with pytest.raises(InputError, match="differs from its SHA-256"):
        KnowledgeGraph.open(small_graph.path, verify=True)


def test_changed_manifest_is_refused(small_graph):
    manifest = small_graph.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace("isa", "isb"))
    with pytest.raises(InputError, match="does not match its checksum"):
        KnowledgeGraph.open(small_graph.path)
