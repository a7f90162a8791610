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


def test_knows_devices_by_their_names():
    assert peak_of("NVIDIA H200") == 989e12
    assert peak_of("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_of("some CPU") is None
