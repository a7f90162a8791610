"""What a run says while it goes on: a progress line, metrics.jsonl, TensorBoard."""

import json
import time
from pathlib import Path
from typing import IO, Any

import deepspeed
import torch
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from bali_ds.checkpoint.manager import RunProgress
from bali_ds.data.loader import Step
from bali_ds.distributed import Ranks
from bali_ds.planning.flops import StepFlops, peak_of
from bali_ds.training.stability import GradientWatch
from bali_ds.training.timers import Communication

_MOST_VIEWS = 1024


class Meter:
    """Speed, use of the hardware, gradient norms, temperature and retrieval within the batch.

    Counting uses what lies on the host; everything else is read when a report waits for the device anyway.
    """

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        ranks: Ranks,
        gradients: GradientWatch,
        flops: StepFlops,
        communication: Communication,
    ) -> None:
        self._engine, self._ranks, self._gradients, self._flops = engine, ranks, gradients, flops
        self._communication = communication
        self._peak = peak_of(torch.cuda.get_device_name()) if ranks.device.type == "cuda" else None
        self._tokens = self._operations = 0

    def count(self, batch: Step) -> None:
        """Count tokens and operations of a step of this rank."""
        for micro_batch in batch.micro_batches:
            tokens, operations = self._flops.count(micro_batch)
            self._tokens += tokens
            self._operations += operations

    def measured(self, parts: dict[str, torch.Tensor], seconds: float) -> dict[str, float]:
        """Return everything by name, for the steps since the last report; every rank calls this.

        Args:
            parts: what the model returned in the last of them.
            seconds: that they took.

        Returns:
            `tokens_per_second` over all ranks (this rank's times their number), `teraflops` of a rank and, on devices
            whose peak in half precision is known, `mfu`; `communication`, the share of the time that this rank stood
            in collectives; `gradient_norm` over all ranks before clipping, `gradient_norm_PART` of this rank's own
            gradients; `temperature` and `logit_bias` where they are learned; `batch_r@1`, how often the nearest graph
            view of a text view of this rank is one of its concept; `memory_gib` on GPUs.
        """
        rate = self._operations / seconds
        values = {
            "tokens_per_second": self._tokens * self._ranks.world_size / seconds,
            "teraflops": rate / 1e12,
            **({"mfu": rate / self._peak} if self._peak else {}),
            "communication": self._communication.seconds() / seconds,
            **{f"gradient_norm_{part}": float(norm) for part, norm in self._gradients.norms().items()},
            **_retrieval(parts),
        }
        self._tokens = self._operations = 0
        norm = self._engine.get_global_grad_norm()
        if norm is not None:
            values["gradient_norm"] = float(norm)
        offset: Any = getattr(self._engine.module, "log_scale_offset", None)
        if offset is not None:
            with deepspeed.zero.GatheredParameters([offset]), torch.no_grad():
                values["temperature"] = 1 / float(self._engine.module.logit_scale)
        offset = getattr(self._engine.module, "logit_bias_offset", None)
        if offset is not None:
            with deepspeed.zero.GatheredParameters([offset]), torch.no_grad():
                values["logit_bias"] = float(self._engine.module.logit_bias)
        if self._ranks.device.type == "cuda":
            values["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return values


def _retrieval(parts: dict[str, torch.Tensor]) -> dict[str, float]:
    if not {"text_views", "graph_views", "concept_ids"} <= parts.keys() or not parts["concept_ids"].numel():
        return {}
    text, graph, concepts = (parts[name][:_MOST_VIEWS] for name in ("text_views", "graph_views", "concept_ids"))
    if text.shape != graph.shape:
        return {}
    nearest = (F.normalize(text.float(), dim=1) @ F.normalize(graph.float(), dim=1).T).argmax(1)
    return {"batch_r@1": float((concepts[nearest] == concepts).float().mean())}


_SHORT = {"masked_language_model": "mlm"}


class Telemetry:
    """Collects losses and times, and reports them every few steps from rank 0.

    Losses stay tensors until they are reported, so that no step waits for the device.
    """

    def __init__(
        self,
        run: Path,
        ranks: Ranks,
        meter: Meter,
        *,
        steps: int,
        first_step: int,
        every: int,
        passages: int,
        epoch_samples: int,
    ) -> None:
        """Report the steps from `first_step` to `steps`.

        Args:
            run: the run's directory; lines of metrics.jsonl from `first_step` on are dropped, they are made again.
            ranks: of the run.
            meter: what else is measured at the steps that are reported.
            steps: optimizer steps of the whole run.
            first_step: steps taken before.
            every: steps between reports.
            passages: passages of one step over all ranks.
            epoch_samples: passages of the training split.
        """
        self.steps, self.every = steps, every
        self.passages, self.epoch_samples = passages, epoch_samples
        self.meter = meter
        self.first_step = first_step
        self.part_names: list[str] = []
        self.parts: list[dict[str, torch.Tensor]] = []
        self.waited = 0.0
        self.started = self.reported = time.monotonic()
        self.file: IO[str] | None = None
        if ranks.is_first:
            self.file = _reopened(run / "metrics.jsonl", first_step)
            self.board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step)

    def record(
        self,
        progress: RunProgress,
        parts: dict[str, torch.Tensor],
        learning_rate: float,
        *,
        batch: Step,
        waited: float,
    ) -> None:
        """Take in one step; report when it is due.

        Args:
            progress: the run after this step.
            parts: the loss and its parts, scalars, and the views.
            learning_rate: of the text encoder.
            batch: this rank's samples.
            waited: seconds spent waiting for data.
        """
        step, position = progress.step, progress.position
        self.parts.append({name: value for name, value in parts.items() if value.numel() == 1})
        self.waited += waited
        self.meter.count(batch)
        if step % self.every and step != self.steps:
            return
        means = {name: float(torch.stack([each[name].float() for each in self.parts]).mean()) for name in self.parts[0]}
        now = time.monotonic()
        seconds = now - self.reported
        values = {
            **means,
            "learning_rate": learning_rate,
            "epoch": position.epoch + position.samples_seen / self.epoch_samples,
            "samples": step * self.passages,
            "samples_per_second": len(self.parts) * self.passages / seconds,
            "data_wait": self.waited / seconds,
            "seconds": now - self.started,
            **self.meter.measured(parts, seconds),
        }
        self.part_names = list(means)
        self.parts, self.waited, self.reported = [], 0.0, now
        self.write(step, values)
        if self.file:
            print(self._line(step, values), flush=True)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write values to metrics.jsonl and TensorBoard."""
        if self.file:
            self.file.write(json.dumps({"step": step, **values}) + "\n")
            self.file.flush()
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def _line(self, step: int, values: dict[str, Any]) -> str:
        remaining = (self.steps - step) * (time.monotonic() - self.started) / (step - self.first_step)
        minutes, seconds = divmod(int(remaining), 60)
        parts = ", ".join(
            f"{_SHORT.get(name, name)} {values[name]:.4f}"
            for name in self.part_names
            if name != "loss" and name in values
        )
        return (
            f"step {step}/{self.steps}  epoch {values['epoch']:.2f}  loss {values['loss']:.4f} ({parts})  "
            f"lr {values['learning_rate']:.2e}  {values['samples_per_second']:.1f} samples/s  "
            f"data wait {values['data_wait']:.1%}  communication {values['communication']:.1%}  "
            f"ETA {minutes}:{seconds:02d}"
        )

    def close(self) -> None:
        """Flush and close what is open."""
        if self.file:
            self.file.close()
            self.board.close()


def _reopened(path: Path, first_step: int) -> IO[str]:
    """Open metrics.jsonl for appending, without the lines of steps that will be taken again."""
    kept = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= first_step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                continue  # the last line of a killed run may be half a line
    path.write_text("".join(kept), encoding="utf-8")
    return path.open("a", encoding="utf-8")
