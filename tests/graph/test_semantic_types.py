from bali_ds.graph.semantic_types import SEMANTIC_TYPE_NAMES, named_type
from tests.conftest import REPOSITORY


def test_names_are_those_of_the_release():
    """MRSTY lists the name of a type beside its identifier."""
    rows = [line.split("|") for line in (REPOSITORY / "shards/sample/MRSTY.RRF").read_text().splitlines()]
    assert len({row[1] for row in rows}) > 15
    assert {(row[1], row[3]) for row in rows} <= SEMANTIC_TYPE_NAMES.items()
    assert named_type("T047") == "T047 Disease or Syndrome"
    assert named_type("gene/protein") == "gene/protein"


def test_all_types_of_the_semantic_network_have_a_name(real_data):
    """A line has two types and the relation between them, or says that a relation is a kind of another (T186, isa)."""
    lines = (real_data / "umls_semantic_network/SRSTRE1").read_text().splitlines()
    triples = [line.split("|")[:3] for line in lines]
    types = {code for first, relation, second in triples if relation != "T186" for code in (first, second)}
    assert types - SEMANTIC_TYPE_NAMES.keys() == set()
    assert SEMANTIC_TYPE_NAMES.keys() <= {code for first, _, second in triples for code in (first, second)}
