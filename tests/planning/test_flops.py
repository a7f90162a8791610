"""The count of a step's operations against what torch counts while it runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForMaskedLM

from bali_ds.model.packed_attention import NAME
from bali_ds.model.text_encoder import TextEncoder
from bali_ds.planning.flops import StepFlops, peak_of
from tests.packs import pack_of, random_pack


class Encoder(torch.nn.Module):
    """A text encoder alone, as the aligner holds it."""

    def __init__(self) -> None:
        super().__init__()
        shape = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256}
        model = BertForMaskedLM(BertConfig(vocab_size=500, **shape, attn_implementation=NAME))
        self.text = TextEncoder(model.bert, model.cls, first_position=0)


class Passages:
    """What of a batch is counted."""

    def __init__(self, count: int, length: int, labeled: int) -> None:
        self.passages = random_pack(*[length] * count, vocab_size=500)
        self.names = self.neighborhoods = pack_of()
        self.labels = torch.zeros(labeled)
        self.node_names = torch.zeros(0)


@pytest.mark.parametrize(("count", "length", "labeled"), [(4, 16, 10), (2, 100, 30)])
def test_counts_what_torch_counts(count, length, labeled):
    model, batch = Encoder(), Passages(count, length, labeled)
    tokens, operations = StepFlops.of(model).count(batch)
    assert tokens == count * length
    with FlopCounterMode(display=False) as counter:
        (hidden,) = model.text.hidden_states((batch.passages,))
        model.text.head(hidden[:labeled]).sum().backward()
    assert operations == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_frozen_layers_have_a_forward_pass_alone():
    model, batch = Encoder(), Passages(2, 100, 30)
    model.text.encoder.embeddings.requires_grad_(False)
    model.text.encoder.get_submodule("encoder.layer.0").requires_grad_(False)
    model.text.head.requires_grad_(False)
    _, operations = StepFlops.of(model).count(batch)
    with FlopCounterMode(display=False) as counter:
        (hidden,) = model.text.hidden_states((batch.passages,))
        model.text.head(hidden[:30]).sum().backward()
    # attention of the frozen layer is counted with its backward pass, which does not run
    attention = 8 * 64 * 2 * 100**2
    assert operations - attention == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_names_without_gradient_have_a_forward_pass_alone():
    model, batch = Encoder(), Passages(2, 100, 30)
    model.names = "no_gradient"
    _, without = StepFlops.of(model).count(batch)
    batch.names = random_pack(*[7] * 20, vocab_size=500)
    tokens, operations = StepFlops.of(model).count(batch)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.text.hidden_states((batch.names,))
    assert tokens == 2 * 100 + 20 * 7
    assert operations - without == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_knows_devices_by_their_names():
    assert peak_of("NVIDIA H200") == 989e12
    assert [peak_of(f"NVIDIA H100 {kind}") for kind in ("80GB HBM3", "PCIe", "NVL")] == [989e12, 756e12, 835e12]
    assert [peak_of(f"NVIDIA {name}") for name in ("A10", "A10G", "L4", "L40", "L40S")] == [
        125e12, 70e12, 121e12, 181e12, 362e12,
    ]  # fmt: skip
    assert peak_of("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_of("some CPU") is None
