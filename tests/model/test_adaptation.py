"""Freezing, low-rank updates and recomputation, for every family of encoders."""

import warnings

import pytest
import torch
from transformers import AutoModelForMaskedLM

from bali_ds.config import TextEncoderConfig
from bali_ds.errors import InputError
from bali_ds.model.build_model import adapt
from bali_ds.model.text_encoder import load_text_encoder
from tests.model.test_text import FAMILIES
from tests.packs import pack_of

PACKED = pack_of(list(range(5, 10)), list(range(12, 19)))


@pytest.fixture(params=("bert", "roberta", "deberta", "modernbert"))
def checkpoint(request, tmp_path):
    torch.manual_seed(1)
    AutoModelForMaskedLM.from_config(FAMILIES[request.param]).save_pretrained(tmp_path)
    return str(tmp_path)


def adapted(checkpoint, **settings):
    text = load_text_encoder(checkpoint, seed=0, dropout=0.0).train()
    adapt(text, TextEncoderConfig(path=checkpoint, **settings))
    return text


def backward(text):
    loss = text.head(text.hidden_states((PACKED,))[0][:5]).square().sum()
    loss.backward()
    return loss, {name: parameter.grad for name, parameter in text.named_parameters()}


def test_frozen_embeddings_and_layers_get_no_gradient_and_all_else_does(checkpoint):
    text = adapted(checkpoint, frozen_embeddings=True, frozen_layers=1)
    _, gradients = backward(text)
    for name, parameter in text.named_parameters():
        frozen = ".embeddings." in f".{name}" or "layer.0." in name or "layers.0." in name
        assert parameter.requires_grad == (not frozen), name
        assert (gradients[name] is not None) == parameter.requires_grad, name
    assert not text.encoder.get_input_embeddings().weight.requires_grad


def test_recomputed_activations_give_the_same_gradients(checkpoint):
    loss, expected = backward(adapted(checkpoint))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "`gradient_checkpointing_enable` is deprecated")
        again, found = backward(adapted(checkpoint, gradient_checkpointing=True))
    torch.testing.assert_close(again, loss)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def test_recomputing_keeps_fewer_activations(checkpoint):
    def kept(text):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            text.hidden_states((PACKED,))
        return sum(sizes)

    assert kept(adapted(checkpoint, gradient_checkpointing=True)) < 0.5 * kept(adapted(checkpoint))


def test_low_rank_updates_start_at_nothing_and_learn_alone(checkpoint):
    plain = load_text_encoder(checkpoint, seed=0, dropout=0.0)
    text = adapted(checkpoint, lora={"rank": 2})
    torch.testing.assert_close(text.hidden_states((PACKED,)), plain.hidden_states((PACKED,)))
    _, gradients = backward(text)
    learning = {name for name, parameter in text.encoder.named_parameters() if parameter.requires_grad}
    assert learning
    assert all(".lora_" in name for name in learning)
    up = [name for name in gradients if "lora_B" in name and name.startswith("encoder.")]
    assert up
    assert all(gradients[name].abs().max() > 0 for name in up)
    assert not text.encoder.get_input_embeddings().weight.requires_grad


def test_more_frozen_layers_than_there_are_and_unknown_modules_are_refused(checkpoint):
    with pytest.raises(InputError, match=r"frozen_layers 3: .* has 2 layers"):
        adapted(checkpoint, frozen_layers=3)
    with pytest.raises(InputError, match=r"text_encoder\.lora: "):
        adapted(checkpoint, lora={"modules": ["no_such_layer"]})
