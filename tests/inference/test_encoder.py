"""Vectors against transformers itself, one string at a time and without padding."""

import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, tokenization_utils_base

from bali_ds.errors import InputError
from bali_ds.files import write_json
from bali_ds.inference import encoder as encoder_module
from bali_ds.inference.encoder import Encoder, load

TEXTS = ["name 3", "mention 1 2 3 4 5", "", "pair", "unheard of", "name 3", "7 " * 60, "[MASK] plus"]


def plain_vector(directory, text, pooling):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModel.from_pretrained(directory).eval()
    ids = tokenizer(text, truncation=True, max_length=32)["input_ids"]
    with torch.no_grad():
        states = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    if pooling == "cls":
        return states[0].numpy()
    if pooling == "mean_tokens" and len(ids) > 2:
        states = states[1:-1]
    return states.mean(dim=0).numpy()


@pytest.mark.parametrize("pooling", ["mean_tokens", "mean", "cls"])
@pytest.mark.parametrize("token_budget", [1, 40, 8192])
def test_vectors_equal_transformers(tiny_encoder, pooling, token_budget):
    found = load(tiny_encoder).encode(TEXTS, pooling=pooling, normalize=False, token_budget=token_budget)
    assert found.dtype == np.float32
    for row, text in enumerate(TEXTS):
        assert np.allclose(found[row], plain_vector(tiny_encoder, text, pooling), atol=1e-5), text


def test_unit_length_order_and_determinism(tiny_encoder, monkeypatch):
    encoder = load(tiny_encoder)
    found = encoder.encode(TEXTS)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.array_equal(found, encoder.encode(TEXTS))
    assert np.array_equal(found[0], found[5])
    monkeypatch.setattr(encoder_module, "TEXTS_AT_ONCE", 3)
    assert np.allclose(found, encoder.encode(TEXTS), atol=1e-6)
    assert encoder.encode([]).shape == (0, 16)


def test_the_directory_says_how_to_pool(tiny_encoder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_encoder, copy)
    write_json(copy / "bali_ds.json", {"pooling": "cls"})
    assert load(copy).pooling == "cls"
    assert load(tiny_encoder).pooling == "mean_tokens"


def test_bf16_on_request(tiny_encoder):
    exact, rounded = load(tiny_encoder).encode(TEXTS), load(tiny_encoder, dtype=torch.bfloat16).encode(TEXTS)
    assert rounded.dtype == np.float32
    assert np.abs(exact - rounded).max() < 0.05
    assert not np.array_equal(exact, rounded)


def test_a_model_without_weights_only_when_given_by_hand(tiny_encoder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_encoder, copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has a config.json but no weights"):
        load(copy)
    model, tokenizer = AutoModel.from_pretrained(tiny_encoder), AutoTokenizer.from_pretrained(tiny_encoder)
    assert np.array_equal(Encoder(model, tokenizer).encode(TEXTS), load(tiny_encoder).encode(TEXTS))


def test_weights_that_do_not_fill_the_architecture_are_refused(tiny_encoder, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(tiny_encoder, copy)
    weights = load_file(copy / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 tensors of the architecture, for example encoder.layer.1"):
        load(copy)
    (copy / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match="cannot be loaded as an encoder"):
        load(copy)


def test_unknown_pooling(tiny_encoder):
    with pytest.raises(InputError, match="pooling 'max' is unknown"):
        load(tiny_encoder).encode(["x"], pooling="max")


@pytest.mark.parametrize("token_budget", [1, 8192])
def test_a_mention_is_the_mean_of_its_tokens_within_the_text(tiny_encoder, token_budget):
    text = "name 1 pair mention 2 3 plus 4"
    places = [(text, text.index(part), text.index(part) + len(part)) for part in ("mention 2 3", "name", "4")]
    found = load(tiny_encoder).encode_mentions(places, token_budget=token_budget)
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_encoder), AutoModel.from_pretrained(tiny_encoder).eval()
    with torch.no_grad():
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy()
    for vector, words in zip(found, ((3, 6), (0, 1), (7, 8)), strict=True):
        expected = states[1 + words[0] : 1 + words[1]].mean(axis=0)
        assert np.allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)


def test_a_mention_is_marked_as_in_training(tiny_encoder, tmp_path):
    marked = tmp_path / "marked"
    shutil.copytree(tiny_encoder, marked)
    (marked / "bali_ds.json").write_text('{"markers": ["40", "41"]}')
    text, spelled = "name 1 pair mention 2 3 plus 4", "name 1 pair 40 mention 2 3 41 plus 4"
    begin = text.index("mention")
    (found,) = load(marked).encode_mentions([(text, begin, begin + len("mention 2 3"))])
    inner = spelled.index("mention")
    (expected,) = load(tiny_encoder).encode_mentions([(spelled, inner, inner + len("mention 2 3"))])
    assert np.allclose(found, expected, atol=1e-6)
    assert np.array_equal(load(marked).encode([text]), load(tiny_encoder).encode([text]))


def test_a_long_text_is_read_around_the_mention(tiny_encoder):
    text = " ".join(["7"] * 50 + ["pair"] + ["8"] * 50)
    encoder = load(tiny_encoder)
    (found,) = encoder.encode_mentions([(text, text.index("pair"), text.index("pair") + 4)])
    middle = " ".join(["7"] * 14 + ["pair"] + ["8"] * 15)  # 30 tokens, beside [CLS] and [SEP]
    (near,) = encoder.encode_mentions([(middle, middle.index("pair"), middle.index("pair") + 4)])
    assert np.allclose(found, near, atol=1e-5)
    with pytest.raises(InputError, match="has no token"):
        encoder.encode_mentions([("name 1", 4, 5)])


def test_nothing_warns_of_long_texts(tiny_encoder, monkeypatch):
    said, text = [], "name " * 300
    monkeypatch.setattr(tokenization_utils_base.logger, "warning", said.append)
    for read in (lambda encoder: encoder.lengths([text]), lambda encoder: encoder.encode_mentions([(text, 5, 9)])):
        encoder = load(tiny_encoder)  # transformers warns once for each tokenizer
        encoder.tokenizer.model_max_length = 32
        read(encoder)
    assert said == []


def test_mentions_of_a_long_text_are_read_together(tiny_encoder, monkeypatch):
    words = [str(number) for number in range(60)]

    def places(first, last, *wanted):
        text = " ".join(words[first:last])
        begins = [len(" ".join([*words[first:word], ""])) for word in wanted]
        return [(text, begin, begin + 2) for begin in begins]

    encoder, rows = load(tiny_encoder), []
    states = encoder._states
    monkeypatch.setattr(encoder, "_states", lambda tokens: rows.extend(map(len, tokens)) or states(tokens))
    together = encoder.encode_mentions(places(0, 60, 20, 22, 24, 50))
    assert sorted(rows) == [32, 32]
    # mentions at the words 20 to 24 are in the middle of 30 words, that at word 50 in the last 30
    expected = np.concatenate([encoder.encode_mentions(places(8, 38, word)) for word in (20, 22, 24)])
    assert np.allclose(together[:3], expected, atol=1e-5)
    assert np.allclose(together[3], encoder.encode_mentions(places(30, 60, 50)), atol=1e-5)
    rows.clear()
    encoder.encode_mentions(places(0, 60, 20), max_tokens=12)
    assert rows == [12]
