"""Run by four processes: evaluates the losses on the first 1, 2, 3 or 4 of them and saves each rank's results."""

import os
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist

from bali_ds.distributed import Ranks
from bali_ds.losses.contrastive import contrastive_loss
from bali_ds.losses.masked_language_model import mean_over_ranks, summed_cross_entropy
from tests.leaving import leave
from tests.losses import dense_contrastive as dense

PROCESSES = 4
NODE = 2  # ranks of a node
SPLITS = {  # rows of queries and keys on each rank
    "one": ((30,), (26,)),
    "two": ((15, 15), (13, 13)),
    "uneven": ((22, 8), (3, 23)),
    "three": ((10, 10, 10), (9, 9, 8)),
    "three-empty": ((0, 17, 13), (0, 20, 6)),
    "four": ((8, 7, 7, 8), (7, 6, 7, 6)),
    "four-empty": ((11, 0, 19, 0), (0, 0, 7, 19)),
    "nothing": ((0, 0), (0, 0)),
}
SCALE, BIAS = 18.0, -2.0


@dataclass(frozen=True)
class Case:
    kind: str
    split: str
    communication: str
    communication_dtype: torch.dtype | None = None

    @property
    def name(self) -> str:
        rounded = [] if self.communication_dtype is None else [str(self.communication_dtype).removeprefix("torch.")]
        return "-".join([self.kind, self.split, self.communication, *rounded])

    @property
    def repeated(self) -> bool:
        return self.split == "four" and self.communication_dtype is None

    def data(self):
        queries, keys = SPLITS[self.split]
        return dense.views(len(self.split), sum(queries), sum(keys), 12, concepts=25)


WAYS = ("gather", "ring", "hierarchical")
CASES = [
    case
    for case in (
        *(Case(kind, split, way) for kind, split, way in product(("ntxent", "sigmoid"), SPLITS, WAYS)),
        *(
            Case(kind, split, way)
            for kind, split, way in product(
                ("clip", "supcon", "marginal", "multi_similarity"), ("uneven", "three-empty", "four"), WAYS
            )
        ),
        *(
            Case(kind, "four", way, communication_dtype=torch.bfloat16)
            for kind, way in product(("ntxent", "clip"), WAYS)
        ),
    )
    if case.communication != "hierarchical" or len(SPLITS[case.split][0]) % NODE == 0
]


def evaluate(case: Case, ranks: Ranks, kernels: str) -> dict:
    rank, before = ranks.rank, bytes_sent(ranks)
    queries, keys, query_ids, key_ids = case.data()
    split = SPLITS[case.split]
    own = [
        values.split(rows)[rank] for values, rows in zip((queries, keys, query_ids, key_ids), split * 2, strict=True)
    ]
    scale, bias = (torch.tensor([value], requires_grad=True) for value in (SCALE, BIAS))
    leaves = [own[0].clone().requires_grad_(), own[1].clone().requires_grad_(), scale, bias]
    loss = contrastive_loss(
        leaves[0], leaves[1], scale, query_concept_ids=own[2], key_concept_ids=own[3], kind=case.kind, logit_bias=bias,
        group=ranks, communication=case.communication, communication_dtype=case.communication_dtype, tile_size=5,
        kernels=kernels,
    )  # fmt: skip
    loss.backward()
    return {
        "loss": loss.detach(),
        "gradients": [leaf.grad for leaf in leaves],
        "bytes_sent": bytes_sent(ranks) - before,
    }


def bytes_sent(ranks: Ranks) -> int:
    return ranks.bytes_sent + (ranks.node.bytes_sent if ranks.node else 0)


def masked_language_model(group, rank: int) -> dict:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(11, 6, generator=generator), torch.randint(6, (11,), generator=generator)
    own = logits.split((4, 0, 7))[rank].clone().requires_grad_()
    loss = mean_over_ranks(summed_cross_entropy(own, labels.split((4, 0, 7))[rank]), len(own), group)
    loss.backward()
    return {"loss": loss.detach(), "gradient": own.grad}


def run(rank: int, cases: list[Case], store: str, out: str, kernels: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    ranks, groups = {}, {}
    for size in range(PROCESSES, 0, -1):  # that of all ranks first: a node makes its group when its ranks have as many
        groups[size] = dist.new_group(list(range(size)))
        if rank < size:
            ranks[size] = Ranks.of(groups[size]).with_node(f"node {rank // NODE}", torch.device("cpu"))
    results = {}
    for case in cases:
        size = len(SPLITS[case.split][0])
        if rank < size:
            results[case.name] = [evaluate(case, ranks[size], kernels) for _ in range(2 if case.repeated else 1)]
    if rank < 3:
        results["masked language model"] = masked_language_model(groups[3], rank)
    torch.save(results, Path(out) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    leave()


def start(out: Path, cases: list[Case], kernels: str = "auto") -> list[dict]:
    """Run cases and return the results of each rank."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.multiprocessing.spawn(run, (cases, str(out / "store"), str(out), kernels), nprocs=PROCESSES)
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]
