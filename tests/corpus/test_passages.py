import random

import numpy as np
import pytest
import sentencex
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from bali_ds.corpus.concept_resolver import ConceptResolver
from bali_ds.corpus.document import Document, Mention, ReadReport
from bali_ds.corpus.passages import cut_passages
from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.graph.knowledge_graph import KnowledgeGraph


@pytest.fixture(scope="module")
def tokenizer(tokenizer_directory):
    return Tokenizer.load(tokenizer_directory)


@pytest.fixture(scope="module")
def graph(graph_directory):
    return KnowledgeGraph.open(graph_directory)


def cut(document, tokenizer, graph, max_tokens):
    report = ReadReport()
    (passages,) = cut_passages([document], tokenizer, ConceptResolver(graph), max_tokens, report)
    return passages, report


def mention(text, string, *ids):
    start = text.index(string)
    return Mention(start, start + len(string), string, "", ids)


def test_passages_are_filled_with_sentences_up_to_the_budget(tokenizer, graph):
    text = "Heart failure was found. Insulin was found. " * 6
    passages, _ = cut(Document("1", text), tokenizer, graph, 32)
    lengths = [len(sentence) for sentence in sentencex.segment("en", text)]
    bounds = np.cumsum([0, *lengths])
    for number, passage in enumerate(passages):
        assert passage.number == number
        assert passage.start in bounds
        assert len(passage.tokens) <= 32
        following = [b for b in bounds if b > passage.end]
        if len(following) > 1:  # the next sentence would have exceeded the budget
            more = tokenizer.encode(text[passage.start : following[1]])
            assert len(more.ids) + 2 > 32
    assert "".join(text[p.start : p.end] for p in passages).replace(" ", "") == text.replace(" ", "")


def test_tokens_and_mentions_of_a_passage(tokenizer, graph):
    text = "Chronic renal failure of the mouse."
    names = (mention(text, "renal failure", "C0000003", "UMLS:C0000004"), mention(text, "mouse", "X"))
    (passage,), report = cut(Document("1", text, names), tokenizer, graph, 64)
    assert passage.tokens[0] == tokenizer.cls_id
    assert passage.tokens[-1] == tokenizer.sep_id
    assert passage.tokens[1:-1].tolist() == tokenizer.encode(text).ids.tolist()
    assert passage.mentions[:, 2].tolist() == [3, 4]
    first, last, _ = passage.mentions[0].tolist()
    assert passage.tokens[first:last].tolist() == tokenizer.encode("renal failure").ids.tolist()
    assert report.counts["mentions_outside_graph"] == 1


def test_a_sentence_end_inside_a_mention_ends_no_passage(tokenizer, graph):
    text = "It was E. Coli. The cell was found in the liver of a mouse with a tumour. More."
    whole = mention(text, "Coli. The cell", "C0000001")
    passages, _ = cut(Document("1", text, (whole,)), tokenizer, graph, 24)
    assert sum(len(passage.mentions) for passage in passages) == 1


def test_a_mention_longer_than_the_budget_is_dropped_and_counted(tokenizer, graph):
    text = "renal " * 40
    passages, report = cut(Document("1", text, (Mention(0, 239, text[:239], "", ("C0000001",)),)), tokenizer, graph, 16)
    assert not any(len(passage.mentions) for passage in passages)
    assert report.counts["mentions_too_long"] == 1


SENTENCES = [
    "Chronic renal failure was found in the heart of a mouse.",
    "Insulin therapy was found in the liver of a mouse.",
    "The growth factor was found in the bone marrow.",
    "(The receptor) of the cell was found in a gene.",
]


def space_before_words(trained_on: list[str], pre_tokenizer: object) -> tokenizers.Tokenizer:
    """Return a tokenizer whose tokens, and their offsets, include the space before a word."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["[CLS]", "[SEP]", "[PAD]", "[MASK]"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(trained_on, trainer)
    return tokenizer


@pytest.mark.parametrize("kind", ["wordpiece", "metaspace", "byte level"])
def test_passages_are_the_same_sentences_whatever_the_tokenizer(tokenizer, graph, tmp_path, kind):
    if kind != "wordpiece":
        pre = tokenizers.pre_tokenizers
        made = pre.Metaspace() if kind == "metaspace" else pre.ByteLevel(trim_offsets=False)
        space_before_words(SENTENCES, made).save(str(tmp_path / "tokenizer.json"))
        tokenizer = Tokenizer.load(tmp_path)
    text = " ".join(SENTENCES)
    lengths = [len(tokenizer.encode(sentence).ids) for sentence in SENTENCES]
    budget = max(lengths) + 4  # of one sentence: the space before it may be a token
    assert budget < 2 * min(lengths)
    spans = [(text.index(string), string) for string in ("renal failure", "growth", "Insulin")]
    passages, _ = cut(Document("1", text), tokenizer, graph, budget)
    assert [text[passage.start : passage.end] for passage in passages] == SENTENCES
    for at, string in spans:  # the tokens of a mention are those that share a visible character with it
        passages, _ = cut(
            Document("1", text, (Mention(at, at + len(string), string, "", ("C0000001",)),)), tokenizer, graph, 400
        )
        (first, last, _), tokens = passages[0].mentions[0].tolist(), passages[0].tokens
        shown = tokenizer.decode(tokens[first:last].tolist()).replace("▁", " ").replace("Ġ", " ")
        assert shown.split() == (string.lower() if kind == "wordpiece" else string).split()


def test_a_long_sentence_is_cut_between_words_whatever_the_tokenizer(graph, tmp_path):
    text = "renal failure of the chronic heart " * 20
    space_before_words([text], tokenizers.pre_tokenizers.Metaspace()).save(str(tmp_path / "tokenizer.json"))
    passages, _ = cut(Document("1", text), Tokenizer.load(tmp_path), graph, 16)
    assert len(passages) > 5
    assert {text[p.start - 1 : p.start] for p in passages[1:]} == {text[p.end] for p in passages[:-1]} == {" "}


def test_a_document_without_text_has_no_passage(tokenizer, graph):
    assert cut(Document("1", "  "), tokenizer, graph, 16)[0] == []


@settings(max_examples=150, deadline=None)
@given(
    text=st.lists(
        st.sampled_from(["renal", "β-é", "heart.", "Cell", "gene.", "x", "insulin?", " ", "\n", "漢字", "(T1D)"]),
        max_size=60,
    ),
    seed=st.integers(0, 2**32),
    max_tokens=st.integers(8, 40),
)
def test_every_mention_is_whole_in_one_passage_or_counted(tokenizer, graph, text, seed, max_tokens):
    text = " ".join(text)
    draw = random.Random(seed)
    spans = {tuple(sorted(draw.sample(range(len(text) + 1), 2))) for _ in range(draw.randint(0, 6))} if text else set()
    names = tuple(Mention(a, b, text[a:b], "", (f"C{draw.randrange(60):07d}",)) for a, b in spans)
    passages, report = cut(Document("1", text, names), tokenizer, graph, max_tokens)
    encoding = tokenizer.encode(text)
    assert np.concatenate([[], *(p.tokens[1:-1] for p in passages)]).tolist() == encoding.ids.tolist()
    assert all(3 <= len(passage.tokens) <= max_tokens for passage in passages)
    base = 0
    stored = []
    for passage in passages:
        for first, last, concept in passage.mentions.tolist():
            assert 1 <= first < last <= len(passage.tokens) - 1
            stored.append((first - 1 + base, last - 1 + base, concept))
        base += len(passage.tokens) - 2
    expected = set()
    for name in names:  # by definition: all tokens that share a character with the mention
        own = [
            n
            for n, (a, b) in enumerate(zip(encoding.starts, encoding.ends, strict=True))
            if a < name.end and b > name.start
        ]
        if own:
            expected.add((own[0], own[-1] + 1, int(name.ids[0][1:])))
    assert set(stored) <= expected
    lost = report.counts["mentions_cut"] + report.counts["mentions_too_long"]
    assert len(expected) - len(stored) <= lost
    if all(last - first <= (max_tokens - 2) // 3 for first, last, _ in expected) and len(expected) <= 2:
        assert len(stored) == len(expected)
