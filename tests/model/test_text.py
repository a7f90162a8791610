import importlib.util

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertModel,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
)

from bali_ds.errors import InputError
from bali_ds.model.text_encoder import load_text_encoder
from tests.packs import random_pack, rows_of, states_one_by_one

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}
FAMILIES = {
    "bert": BertConfig(**SIZES),
    "roberta": RobertaConfig(**SIZES, pad_token_id=1),
    "deberta": DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "modernbert": ModernBertConfig(
        **SIZES, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3
    ),
    "electra": ElectraConfig(**SIZES, embedding_size=16),
}


@pytest.fixture(params=FAMILIES)
def checkpoint(request, tmp_path):
    torch.manual_seed(1)
    AutoModelForMaskedLM.from_config(FAMILIES[request.param]).save_pretrained(tmp_path)
    return tmp_path


def test_hidden_states_and_head_are_those_of_the_checkpoint(checkpoint):
    text = load_text_encoder(str(checkpoint), seed=0).eval()
    whole = AutoModelForMaskedLM.from_pretrained(checkpoint).eval()
    packs = (random_pack(5, 7), random_pack(4, 9))
    hidden = torch.cat(text.hidden_states(packs))
    rows = [row for packed in packs for row in rows_of(packed)]
    logits = torch.cat([whole(input_ids=torch.tensor([row])).logits[0] for row in rows])
    torch.testing.assert_close(text.head(hidden), logits, atol=1e-5, rtol=1e-5)
    assert not text.fresh_head


def test_every_parameter_is_used_and_head_and_embeddings_are_tied(checkpoint):
    text = load_text_encoder(str(checkpoint), seed=0, dropout=0.0)
    text.head(text.hidden_states((random_pack(7, 7),))[0]).square().sum().backward()
    assert [name for name, parameter in text.named_parameters() if parameter.grad is None] == []
    embeddings = text.encoder.get_input_embeddings().weight
    assert any(parameter is embeddings for parameter in text.head.parameters())


def test_a_layer_is_the_state_after_so_many_layers_of_the_whole(checkpoint):
    cut = load_text_encoder(str(checkpoint), seed=0, layer=1).eval()
    whole = AutoModelForMaskedLM.from_pretrained(checkpoint).eval()
    packed = random_pack(7, 7)
    states = whole.base_model(input_ids=packed.input_ids.view(2, 7), output_hidden_states=True).hidden_states[1]
    if hasattr(whole.base_model, "final_norm"):
        states = whole.base_model.final_norm(states)
    torch.testing.assert_close(cut.hidden_states((packed,))[0], states.flatten(0, 1), atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match=r"text_encoder\.layer 3: .* has 2 layers"):
        load_text_encoder(str(checkpoint), seed=0, layer=3)


def test_attention_computed_otherwise_gives_the_same_states(checkpoint):
    packed = random_pack(5, 7)
    texts = [load_text_encoder(str(checkpoint), seed=0, attention=each).eval() for each in ("packed", "sdpa", "eager")]
    assert texts[2].encoder.config._attn_implementation == "eager"
    assert texts[1].first_position is texts[2].first_position is None
    expected = states_one_by_one(texts[2].encoder, packed)
    for text in texts:
        torch.testing.assert_close(text.hidden_states((packed,))[0], expected, atol=1e-5, rtol=1e-5)


def test_flash_attention_is_refused_in_one_line_where_it_cannot_be_used(checkpoint, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"flash_attention_2 cannot be used here \(needs a GPU\); take packed"):
        load_text_encoder(str(checkpoint), seed=0, attention="flash_attention_2")


def test_a_plan_for_flash_attention_may_be_made_anywhere(tmp_path):
    FAMILIES["bert"].save_pretrained(tmp_path)
    with torch.device("meta"):
        text = load_text_encoder(str(tmp_path), seed=0, weights="random", attention="flash_attention_2")
    assert text.encoder.config._attn_implementation == "sdpa"


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_flash_attention_needs_its_package_and_an_architecture_that_has_it(checkpoint, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(InputError, match=r"flash_attention_2 cannot be used here \(.*\); take packed$") as caught:
        load_text_encoder(str(checkpoint), seed=0, attention="flash_attention_2")
    assert "\n" not in str(caught.value)


def test_dropout_of_the_recipe_replaces_that_of_the_checkpoint(checkpoint):
    text = load_text_encoder(str(checkpoint), seed=0, dropout=0.0).train()
    packs = (random_pack(7, 7),)
    assert torch.equal(text.hidden_states(packs)[0], text.hidden_states(packs)[0])


def test_a_checkpoint_without_a_head_gets_a_new_tied_one_and_the_log_says_so(tmp_path, caplog):
    BertModel(FAMILIES["bert"], add_pooling_layer=False).save_pretrained(tmp_path)
    with caplog.at_level("INFO"):
        text = load_text_encoder(str(tmp_path), seed=0)
    assert text.fresh_head
    assert "a new one is initialized" in caplog.text
    assert text.head.predictions.decoder.weight is text.encoder.embeddings.word_embeddings.weight
    again = load_text_encoder(str(tmp_path), seed=0)
    assert torch.equal(text.head.predictions.transform.dense.weight, again.head.predictions.transform.dense.weight)


@pytest.mark.parametrize("weights", ["tf_model.h5", "flax_model.msgpack", None])
def test_a_directory_without_readable_weights_is_refused_unless_new_ones_are_asked_for(tmp_path, weights):
    FAMILIES["bert"].save_pretrained(tmp_path)
    said = "has no weights .* set text_encoder.weights to random"
    if weights:
        (tmp_path / weights).write_bytes(b"weights")
        said = rf"its weights \({weights}\) are not read; convert them to safetensors"
    with pytest.raises(InputError, match=said):
        load_text_encoder(str(tmp_path), seed=0)
    assert load_text_encoder(str(tmp_path), seed=0, weights="random").fresh_head


def test_random_weights_are_those_of_the_seed_whatever_the_directory_holds(tmp_path):
    AutoModelForMaskedLM.from_config(FAMILIES["bert"]).save_pretrained(tmp_path)
    first, same, other = (
        load_text_encoder(str(tmp_path), seed=seed, weights="random").state_dict() for seed in (3, 3, 4)
    )
    assert all(torch.equal(first[name], same[name]) for name in first)
    embeddings = "encoder.embeddings.word_embeddings.weight"
    assert not torch.equal(first[embeddings], other[embeddings])


def test_a_head_of_another_make_is_refused(tmp_path):
    DistilBertConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, hidden_dim=24).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="DistilBertForMaskedLM cannot be called by itself"):
        load_text_encoder(str(tmp_path), seed=0, weights="random")


def test_weights_of_another_architecture_are_refused(tmp_path):
    BertModel(BertConfig(**SIZES | {"num_hidden_layers": 1})).save_pretrained(tmp_path)
    FAMILIES["bert"].save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"its weights lack 16 tensors .* bert\.encoder\.layer\.1"):
        load_text_encoder(str(tmp_path), seed=0)


@pytest.mark.parametrize("config", [None, "{}", "no json"])
def test_what_is_no_encoder_is_refused_in_one_line(tmp_path, config):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(InputError) as caught:
        load_text_encoder(str(tmp_path), seed=0)
    assert "\n" not in str(caught.value)
