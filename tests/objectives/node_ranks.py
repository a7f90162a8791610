"""Run by four processes, two of which claim to be on another machine: the loss with `negatives: node`."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from bali_ds import distributed
from bali_ds.config.objectives import ObjectiveConfig
from bali_ds.objectives.contrastive import ContrastiveAlignment
from bali_ds.objectives.objective import EncodedViews
from tests.leaving import leave
from tests.losses import dense_contrastive as dense

NODE, VIEWS, SCALE = 2, 6, 12.0


def data():
    return dense.views(0, 4 * VIEWS, 4 * VIEWS, 8, concepts=9)


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    distributed.machine_id = lambda: f"machine {rank // NODE}"
    objective = ContrastiveAlignment(ObjectiveConfig.model_validate({"contrastive": {"negatives": "node"}}))
    text, graph, ids, _ = (each.split(VIEWS)[rank] for each in data())
    text, graph = text.clone().requires_grad_(), graph.clone().requires_grad_()
    objective.communication_dtype = lambda _device: None
    encoded = EncodedViews(text, graph, torch.arange(VIEWS), ids, {})
    loss = objective.step_loss([encoded], torch.tensor([SCALE]), torch.zeros(1))
    loss.backward()
    torch.save((loss.detach(), text.grad, graph.grad), Path(sys.argv[1]) / f"{rank}.pt")
    dist.destroy_process_group()
    leave()


if __name__ == "__main__":
    main()
