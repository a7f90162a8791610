"""In which dtype the contrastive objective compares views: the key of the recipe, else the run's precision on a GPU."""

from types import SimpleNamespace

import pytest
import torch

from bali_ds.config.objectives import ObjectiveConfig
from bali_ds.objectives.contrastive import ContrastiveAlignment

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
