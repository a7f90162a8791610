"""The spaCy component: links of entities and of span groups, their candidates, and spans that stay unlinked."""

import pytest

spacy = pytest.importorskip("spacy")
Linker = pytest.importorskip("bali_ds.inference.spacy_component").Linker


@pytest.fixture
def names(tmp_path):
    file = tmp_path / "dictionary.txt"
    file.write_text("C1||name 1\nC2||pair 2 3\nC3||mention 7 8 9\n")
    return file


@pytest.fixture
def make(tiny_encoder, names):
    def build(**settings):
        nlp = spacy.blank("en")
        ruler = nlp.add_pipe("entity_ruler" if "spans_key" not in settings else "span_ruler")
        ruler.add_patterns([{"label": "CONCEPT", "pattern": text} for text in ("name 1", "mention 7 8 9", "pair 2 3")])
        nlp.add_pipe("bali_ds_linker", config={"model": str(tiny_encoder), "names": str(names), "top": 2, **settings})
        return nlp

    return build


def test_entities_get_the_concept_that_the_linker_finds(make, tiny_encoder, names):
    texts = ["A name 1 and a pair 2 3.", "nothing here", "mention 7 8 9"]
    linker = Linker.open(tiny_encoder, names)
    documents = list(make().pipe(texts))
    assert [[span.kb_id_ for span in doc.ents] for doc in documents] == [["C1", "C2"], [], ["C3"]]
    for span in documents[0].ents:
        assert span.label_ == "CONCEPT"
        expected = linker.link([span.text], top=2)[0]
        assert [each.cui for each in span._.bali_ds_candidates] == [each.cui for each in expected]


def test_a_span_below_the_lowest_score_stays_unlinked(make):
    (span,) = make(lowest_score=1.01)("mention 7 8 9").ents
    assert span.kb_id_ == ""
    assert span._.bali_ds_candidates == ()


def test_a_group_of_spans_is_linked(make):
    doc = make(spans_key="ruler")("a pair 2 3")
    assert [span.kb_id_ for span in doc.spans["ruler"]] == ["C2"]
