import pytest

from bali_ds.graph.relations import canonical, inverse_name, pair_up

PAIRS = [
    ("CHD", "PAR"), ("RN", "RB"), ("AQ", "QB"), ("SY", "SY"), ("SIB", "SIB"), ("RO", "RO"),
    ("may_treat", "may_be_treated_by"), ("part_of", "has_part"), ("same_as", "same_as"),
    ("has_phenotype", "phenotype_of"), ("isa", "inverse_isa"), ("mapped_to", "mapped_from"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "inverse"), PAIRS)
def test_inverse_names(name, inverse):
    assert inverse_name(name) == inverse
    assert inverse_name(inverse) == name
    assert canonical(name, inverse) == canonical(inverse, name) == name


def test_the_long_inverse_prefix_of_the_umls_is_removed():
    assert inverse_name("inverse_of_isa") == "isa"


def test_documented_inverses_take_precedence():
    assert pair_up(["isa", "inverse_isa", "subsumes"]) == {"isa": "inverse_isa", "inverse_isa": "isa"}
    assert pair_up(["isa", "inverse_isa", "subsumes"], {"isa": "subsumes"}) == {"isa": "subsumes", "subsumes": "isa"}
    assert pair_up(["causes", "RO"]) == {"RO": "RO"}
