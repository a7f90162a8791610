"""Run by one or two processes: trains a small aligner at one ZeRO stage after another; saves what tests compare."""

import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
from transformers import BertConfig, BertForMaskedLM

from bali_ds.checkpoint.manager import RunProgress
from bali_ds.config import ObjectiveConfig
from bali_ds.data.loader import Step
from bali_ds.data.sampler import Position
from bali_ds.model.aligner import Aligner
from bali_ds.model.graph_encoders import GraphEncoder
from bali_ds.model.text_encoder import TextEncoder
from bali_ds.training.process_group import joined_ranks
from bali_ds.training.step import train_step
from tests.leaving import leave

STEPS = 2
CASES = ("0-fp32", "1-bf16", "2-fp32", "3-bf16")  # of two ranks
ALONE = tuple(f"{case}-alone" for case in CASES)  # of one


def aligner(seed: int) -> Aligner:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=40, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20,
        max_position_embeddings=16,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    graph = GraphEncoder(12, 3, layers=1, heads=2, dropout=0.0)
    objective = ObjectiveConfig.model_validate({"contrastive": {"learn_temperature": True}})
    return Aligner(TextEncoder(model.bert, model.cls), graph, objective)


class Toy(torch.nn.Module):
    """A model with every part of an aligner, whose micro-batches are token ids."""

    def __init__(self) -> None:
        super().__init__()
        whole = aligner(5)
        self.text, self.graph, self.log_scale_offset = whole.text, whole.graph, whole.log_scale_offset

    def forward(self, micro_batches: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        (tokens,) = micro_batches
        hidden = self.text.encoder(input_ids=tokens).last_hidden_state
        edges = torch.tensor([[1, 2], [0, 0]])
        nodes = self.graph(hidden[0].float().to(hidden.dtype), edges, torch.tensor([0, 2]))
        logits = self.text.head(hidden)
        return (logits.square().mean() + nodes.square().mean()) * self.log_scale_offset.exp().sum(), {}


def train(stage: int, precision: str, out: Path) -> None:
    model = Toy()
    named = list(model.named_parameters())
    groups = [
        {"params": [parameter for name, parameter in named if name.startswith("text.") and parameter.ndim > 1]},
        {"params": [parameter for name, parameter in named if name.startswith("text.") and parameter.ndim == 1]},
        {"params": [parameter for name, parameter in named if not name.startswith("text.")], "lr": 1e-2},
    ]
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": precision == "bf16"},
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(groups, lr=1e-2), config=settings)
    rank, progress = torch.distributed.get_rank(), RunProgress(0, Position())
    for step in range(STEPS):
        tokens: Any = torch.arange(6)[None] + 6 * rank + step
        progress = train_step(engine, Step(Position(), (tokens,)), progress).progress
    engine.save_checkpoint(str(out), tag=f"step-{STEPS:08d}", save_latest=False)
    live = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=stage == 3):
            live[name] = parameter.detach().clone()
    if rank == 0:
        torch.save(live, out / "live.pt")


def main() -> None:
    out, *cases = sys.argv[1:]
    with joined_ranks() as ranks:
        for case in cases:
            stage, precision, *_ = case.split("-")
            folder = Path(out) / case
            if ranks.is_first:
                folder.mkdir(parents=True)
            ranks.barrier()
            train(int(stage), precision, folder)
    leave()


if __name__ == "__main__":
    main()
