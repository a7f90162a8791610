"""Parts of gpu.py in processes of their own: two ranks on one device, and kernels under NVIDIA's memory checker."""

import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from bali_ds.losses.contrastive import contrastive_loss
from bench.gpu_bench import ROOT, Bench, Figures
from tests.losses.dense_contrastive import dense_loss, views
from tests.ports import free_port

KINDS = ("ntxent", "clip", "supcon", "marginal", "multi_similarity", "sigmoid")
SPLITS = (180, 113), (131, 200)  # queries and keys of each rank
SCALE, BIAS = 20.0, -3.0
CHECKED = """
from pathlib import Path
from bench.gpu_bench import Bench
from bench.gpu_encoder import layer_errors
from bench.gpu_loss import loss_errors
layer_errors((3, 5, 64))
layer_errors((3, 90, 128))
layer_errors((3, 200))
loss_errors(Bench("cuda", True, Path(), Path()))
"""


def ranks(bench: Bench) -> Figures:
    """The loss of two ranks over gloo, which share the device, against dense float64 over the views of both."""
    port = free_port()
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        of_ranks = list(pool.map(_evaluate, (0, 1), repeat(port), repeat(bench.device)))
    errors = {}
    for kind in KINDS:
        losses, by_queries, by_keys = zip(*(each[kind] for each in of_ranks), strict=True)
        assert losses[0] == losses[1], losses
        queries, keys, *ids = _views()
        leaves = [each.double().requires_grad_() for each in (queries, keys)]
        want = dense_loss(*leaves, torch.tensor(SCALE), *ids, kind, bias=torch.tensor(BIAS))
        want.backward()
        rows = {"loss": abs(losses[0] / want.item() - 1)}
        # gradients are scaled for their mean over ranks
        for name, mine, true in zip(("queries", "keys"), (by_queries, by_keys), leaves, strict=True):
            assert true.grad is not None
            rows[name] = float((torch.cat(mine).double() / 2 - true.grad).norm() / true.grad.norm())
        assert max(rows.values()) < 1e-4, (kind, rows)
        errors[kind] = rows
    return {"errors": errors}


def _views() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    queries, keys, *ids = views(11, sum(SPLITS[0]), sum(SPLITS[1]), 72, concepts=150, zipf=True)
    return F.normalize(queries.double()).float(), F.normalize(keys.double()).float(), ids[0], ids[1]


def _evaluate(rank: int, port: int, device: str) -> dict[str, tuple[float, Tensor, Tensor]]:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    own = [each.split(rows)[rank].to(device) for each, rows in zip(_views(), SPLITS * 2, strict=True)]
    found = {}
    for kind in KINDS:
        queries, keys = (each.clone().requires_grad_() for each in own[:2])
        loss = contrastive_loss(
            queries, keys, SCALE, query_concept_ids=own[2], key_concept_ids=own[3], kind=kind, logit_bias=BIAS
        )
        loss.backward()
        assert queries.grad is not None
        assert keys.grad is not None
        found[kind] = (loss.item(), queries.grad.cpu(), keys.grad.cpu())
    dist.destroy_process_group()
    return found


def sanitizer(bench: Bench) -> Figures:
    """The kernels of layers and losses under compute-sanitizer's memory checker, where it is installed."""
    checker = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if bench.device == "cpu" or checker is None:
        return {"checked": False}
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [checker, "--tool", "memcheck", sys.executable, "-c", CHECKED],
        env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip
    errors = re.search(r"ERROR SUMMARY: (\d+) error", done.stdout)
    assert errors is not None, (done.stdout + done.stderr)[-2000:]
    assert done.returncode == int(errors[1]) == 0, (done.stdout + done.stderr)[-2000:]
    return {"checked": True}
