"""What DeepSpeed does on the host in a step of one rank: operations that it adds, and processor time.

    python bench/host_work.py

The aligner has as many parameters as one with BERT-base, each of tiny width, so that arithmetic takes no time. Counted
are the operations of the backward pass and the update that compute or copy, each a kernel on a GPU, in bfloat16; those
of plain torch (backward pass, clipping and AdamW over all parameters at once, torch's default on GPUs) are subtracted.
Needs the sample: make train.
"""

import os
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed  # noqa: E402
import torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from bali_ds.config import Recipe  # noqa: E402
from bali_ds.files import write_json  # noqa: E402
from bali_ds.model.build_model import build_aligner  # noqa: E402
from bali_ds.planning.batch_plan import plan_batches  # noqa: E402
from bali_ds.planning.run_data import RunData  # noqa: E402
from bali_ds.training.engine import build_engine, deepspeed_settings, parameter_groups, set_learning_rates  # noqa: E402
from bench.gpu_bench import Bench  # noqa: E402

SHAPE = {"hidden_size": 16, "num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 32}
STEPS = 20
# Operations that neither compute nor copy.
VIEWS = (
    "view", "detach", "slice", "transpose", ".t.", "unsqueeze", "expand", "alias", "as_strided", "lift_fresh",
    "squeeze", "split", "unbind", "empty", "select", "permute", "c10d", "_local_scalar", "narrow", "unfold", "set_",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One way to take a step.

    Attributes:
        name: in the table.
        stage: ZeRO stage; None for plain torch.
        as_file: with the search and the buckets of the DeepSpeed file, which training switches off on one rank.
        searches: with DeepSpeed's own search for non-finite gradients.
    """

    name: str
    stage: int | None
    as_file: bool = False
    searches: bool = False


PLAIN = Case("plain torch", None)
CASES = (
    PLAIN,
    Case("ZeRO 0", 0),
    Case("ZeRO 1 with the second search and buckets", 1, as_file=True, searches=True),
    Case("ZeRO 1 with buckets", 1, as_file=True),
    Case("ZeRO 1", 1),
    Case("ZeRO 2", 2),
    Case("ZeRO 3", 3),
)


@dataclass
class Operations(TorchDispatchMode):  # type: ignore[misc]
    """Counts operations by name."""

    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(function)] += 1
        return function(*args, **(kwargs or {}))

    def total(self) -> int:
        """Return how many compute or copy."""
        return sum(count for name, count in self.counts.items() if not any(each in name for each in VIEWS))


def main() -> None:
    """Take the steps of every case and print the table."""
    torch.set_num_threads(1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    deepspeed.init_distributed(verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench("cpu", small=True, data=ROOT / "shards/built/sample", folder=Path(folder))
        rows = [measure(bench, case) for case in CASES]
    plain = rows[0]
    for row in rows:
        row["added"] = row["operations"] - plain["operations"]
        print(f"{row['case']:<45}{row['added']:>8,}{row['milliseconds']:>8.0f} ms")
    write_json(ROOT / "bench/results/host_work.json", {"parameters": plain["parameters"], "rows": rows})


def measure(bench: Bench, case: Case) -> dict[str, Any]:
    """Return the operations of backward pass and update of one step, and the least processor time of later ones."""
    recipe = bench.recipe("host", SHAPE, steps=STEPS, batch={"passages": 8})
    recipe = recipe.model_copy(
        update={"precision": "bf16", "deepspeed": ROOT / f"ds_configs/zero{case.stage or 0}.json"}
    )
    data = RunData.open(recipe)
    torch.manual_seed(0)
    aligner = build_aligner(recipe, 2 * data.graph.num_relations, data.shards)
    parameters = sum(parameter.requires_grad for parameter in aligner.parameters())
    made = _plain(aligner, recipe) if case.stage is None else _engine(aligner, recipe, data, case)
    update, forward, backward = made
    counted, seconds = Operations(), []
    with data.loader(recipe, rank=0, world_size=1) as loader:
        for step in range(STEPS):
            batches = next(loader).micro_batches
            torch.manual_seed(step)
            loss = forward(batches)
            begun = time.process_time()
            if step == 1:
                with counted:
                    backward(loss)
                    update()
            else:
                backward(loss)
                update()
                seconds.append(time.process_time() - begun)
    milliseconds = 1e3 * min(seconds[1:])
    return {"case": case.name, "parameters": parameters, "operations": counted.total(), "milliseconds": milliseconds}


Step = tuple[Callable[[], Any], Callable[[Any], torch.Tensor], Callable[[torch.Tensor], Any]]


def _plain(aligner: torch.nn.Module, recipe: Recipe) -> Step:
    aligner.to(torch.bfloat16).train()
    optimizer = torch.optim.AdamW(
        parameter_groups(aligner, recipe.optimizer), betas=(0.9, 0.98), eps=1e-6, foreach=True
    )

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(aligner.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad()

    return update, lambda batches: aligner(batches)[0], lambda loss: loss.backward()


def _engine(aligner: torch.nn.Module, recipe: Recipe, data: RunData, case: Case) -> Step:
    settings = deepspeed_settings(recipe, plan_batches(recipe, 1, data.shards.size("train")))
    if case.as_file:
        settings["zero_optimization"] |= {"overlap_comm": True, "contiguous_gradients": True}
    settings["bf16"]["check_grad_overflow"] = case.searches
    engine = build_engine(aligner, recipe, settings)
    set_learning_rates(engine, 1.0)
    return engine.step, lambda batches: engine(batches)[0], engine.backward


if __name__ == "__main__":
    main()
