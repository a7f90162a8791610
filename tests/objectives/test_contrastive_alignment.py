"""In which dtype the contrastive objective compares views, and with those of which ranks."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bali_ds.config.objectives import ObjectiveConfig
from bali_ds.objectives.contrastive import ContrastiveAlignment
from tests.conftest import run_ranks
from tests.losses.dense_contrastive import dense_loss
from tests.objectives.node_ranks import NODE, SCALE, VIEWS, data

BF16, FP32 = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("chosen", "precision", "device", "expected"),
    [
        (None, BF16, "cuda", BF16),
        (None, FP32, "cuda", None),
        (None, torch.float16, "cuda", None),
        (None, BF16, "cpu", None),
        ("fp32", BF16, "cuda", None),
        ("bf16", FP32, "cpu", BF16),
    ],
)
def test_communication_dtype(chosen, precision, device, expected):
    objective = ContrastiveAlignment(ObjectiveConfig.model_validate({"contrastive": {"communication_dtype": chosen}}))
    text = SimpleNamespace(encoder=SimpleNamespace(dtype=precision))
    assert objective.build(text, num_relations=1, graph_tokens=1) is None
    assert objective.communication_dtype(torch.device(device)) is expected


def test_negatives_of_a_node(tmp_path):
    """The loss is the mean over nodes of the plain loss of each node's views, and so are its gradients."""
    run_ranks(4, Path(__file__).with_name("node_ranks.py"), tmp_path)
    text, graph, ids, _ = data()
    text, graph = (each.double().requires_grad_() for each in (text, graph))
    parts = zip(*(each.split(NODE * VIEWS) for each in (text, graph, ids)), strict=True)
    losses = [dense_loss(own, other, SCALE, labels, labels, "ntxent") for own, other, labels in parts]
    want = sum(losses) / len(losses)
    want.backward()
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(4)]
    assert [float(loss) for loss, _, _ in found] == pytest.approx([float(want)] * 4, rel=1e-6)
    for number, leaf in ((1, text), (2, graph)):
        got = torch.cat([each[number] for each in found]).double() / 4
        torch.testing.assert_close(got, leaf.grad, rtol=1e-4, atol=1e-7)
