import pytest

from bali_ds.corpus.normalization import WordHasher, normalize_word, split_words
from bali_ds.corpus.stopwords import is_stop_name, is_symbol


@pytest.mark.parametrize(
    ("word", "normal"),
    [
        ("Tumours", "tumor"), ("anaemia", "anemia"), ("oesophagus", "esophagus"), ("Therapies", "therapy"),
        ("abscesses", "abscess"), ("indexes", "index"), ("virus", "virus"), ("sepsis", "sepsis"), ("mass", "mass"),
        ("ties", "tie"), ("our", "our"), ("IL2", "il2"), ("hearts", "heart"), ("β", "β"),
        ("AIDS", "aids"), ("Aids", "aid"), ("SNPs", "snp"), ("HEARTS", "heart"),
    ],
)  # fmt: skip
def test_normal_forms(word, normal):
    assert normalize_word(word) == normal


def test_hashes_are_those_of_the_normal_form_and_never_the_separator():
    hasher = WordHasher()
    words = ["Tumours", "tumor", "heart", "x"]
    hashes = hasher(words)
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
    assert 0 not in hashes
    assert WordHasher()(words[::-1]) == hashes[::-1]


def test_words_are_runs_of_letters_and_digits_or_punctuation_between_clauses():
    assert split_words("IL-2 (β_x), 3.5").texts == ["IL", "2", "(", "β", "x", ")", ",", "3", ".", "5"]
    assert split_words("IL-2 (β_x), 3.5").starts == [0, 3, 5, 6, 8, 9, 10, 12, 13, 14]
    assert split_words("") == ([], [])


@pytest.mark.parametrize(
    ("name", "ignored"),
    [
        ("Patients", True), ("IT", True), ("CELL", True), ("12", True), ("5 mg", False), ("x", True), ("ab", True),
        ("AIDS", False), ("p53", False), ("heart", False), ("12 34", True), ("a b", True), ("IL 2", False),
    ],
)  # fmt: skip
def test_stop_names(name, ignored):
    assert is_stop_name(split_words(name).texts) == ignored


def test_symbols_are_single_short_words_with_capitals_or_digits():
    words = ["AIDS", "mRNA", "IgM", "B12", "Aids", "p53", "ABCDEFGHI"]
    assert [is_symbol([word]) for word in words] == [True, True, True, True, False, False, False]
    assert not is_symbol(["AIDS", "virus"])
