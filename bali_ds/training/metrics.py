"""Metrics of training: what is measured, and the progress line."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch

from bali_ds.config import Recipe
from bali_ds.data.loader import Step
from bali_ds.distributed import Ranks
from bali_ds.evaluation.retrieval import recall_at_1
from bali_ds.planning.batch_plan import BatchPlan
from bali_ds.planning.flops import StepFlops, peak_of
from bali_ds.progress_bar import duration
from bali_ds.terminal import print_progress
from bali_ds.training.metrics_log import MetricsLog
from bali_ds.training.stability import GradientNorms
from bali_ds.training.step import StepResult
from bali_ds.training.timers import CommunicationTimer, StragglerTimer

_MOST_VIEWS = 1024


class PerformanceMetrics:
    """Throughput, hardware utilization, gradient norms, temperature and retrieval within the batch.

    Counting uses data in host memory; everything else is read when a report waits for the device anyway.
    """

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        ranks: Ranks,
        gradients: GradientNorms,
        flops: StepFlops,
        communication: CommunicationTimer,
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

    def measure(self, outputs: dict[str, torch.Tensor], seconds: float) -> dict[str, float]:
        """Return all metrics by name for the steps since the last call; every rank calls this.

        Args:
            outputs: what the model returned in the last of these steps.
            seconds: duration of these steps.

        Returns:
            `tokens_per_second` over all ranks (this rank's times their number), `teraflops` of a rank and, on devices
            whose peak in half precision is known, `mfu`; `communication`, the fraction of the time that this rank spent
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
            **{f"gradient_norm_{part}": float(norm) for part, norm in self._gradients.by_part().items()},
            **_retrieval(outputs),
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


def _retrieval(outputs: dict[str, torch.Tensor]) -> dict[str, float]:
    if not {"text_views", "graph_views", "concept_ids"} <= outputs.keys() or not outputs["concept_ids"].numel():
        return {}
    text, graph, concept_ids = (outputs[name][:_MOST_VIEWS] for name in ("text_views", "graph_views", "concept_ids"))
    if text.shape != graph.shape:
        return {}
    return {"batch_r@1": recall_at_1(*(each.cpu().numpy() for each in (text.float(), graph.float(), concept_ids)))}


_SHORT_NAMES = {"masked_language_model": "mlm"}


class MetricsLogger:
    """Accumulates losses and times, and reports them from rank 0 every `log_every` steps and after the last.

    Losses stay tensors until they are reported, so that no step waits for the device.
    """

    def __init__(
        self,
        recipe: Recipe,
        ranks: Ranks,
        batch_plan: BatchPlan,
        performance: PerformanceMetrics,
        stragglers: StragglerTimer,
        log: MetricsLog | None,
        *,
        first_step: int,
    ) -> None:
        """Start with no losses and no times.

        Args:
            recipe: the run.
            ranks: the ranks of the run.
            batch_plan: steps and passages of the run.
            performance: what is measured at the steps that are reported.
            stragglers: which hosts are slow.
            log: where metrics are written; None on other ranks than the first.
            first_step: steps taken before.
        """
        self._ranks, self._performance, self._stragglers = ranks, performance, stragglers
        self._every, self._steps, self._first_step = recipe.log_every, batch_plan.steps, first_step
        self._passages, self._epoch_samples = batch_plan.passages_per_step, batch_plan.training_passages
        self._learning_rate = recipe.optimizer.text_learning_rate
        self._losses: list[dict[str, torch.Tensor]] = []
        self._waited = self._last_wait = 0.0
        self._started = self._reported = time.monotonic()
        self._log = log

    @contextmanager
    def data_wait(self) -> Iterator[None]:
        """Count the time of the block as waiting for data; that of a skipped batch does not count."""
        begin = time.monotonic()
        yield
        self._last_wait = time.monotonic() - begin

    def record(self, result: StepResult, batch: Step, learning_rate_factor: float) -> None:
        """Take in one step and report when it is due; every rank calls this.

        Args:
            result: of the step.
            batch: this rank's samples.
            learning_rate_factor: of the schedule.
        """
        step = result.progress.step
        self._losses.append({name: value for name, value in result.outputs.items() if value.numel() == 1})
        self._waited += self._last_wait
        self._performance.count(batch)
        if step % self._every == 0 or step == self._steps:
            self._report(result, learning_rate_factor)
        if step % self._every == 0 and (slow := self._stragglers.gather_slow_hosts()):
            print_progress(slow)

    def _report(self, result: StepResult, learning_rate_factor: float) -> None:
        step, position = result.progress.step, result.progress.position
        losses, self._losses = self._losses, []
        means = {name: float(torch.stack([each[name].float() for each in losses]).mean()) for name in losses[0]}
        now = time.monotonic()
        seconds = now - self._reported
        values = {
            **means,
            "learning_rate": self._learning_rate * learning_rate_factor,
            "epoch": position.epoch + position.samples_seen / self._epoch_samples,
            "samples": step * self._passages,
            "samples_per_second": len(losses) * self._passages / seconds,
            "data_wait": self._waited / seconds,
            "seconds": now - self._started,
            **self._performance.measure(result.outputs, seconds),
        }
        self._waited, self._reported = 0.0, now
        self.write(step, values)
        if self._ranks.is_first:
            print_progress(self._line(step, values, list(means)))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write values to metrics.jsonl and the trackers, and print those of a validation, on rank 0."""
        if self._log:
            self._log.write(step, values)
            if line := _validation_line(values):
                print_progress(f"step {step}/{self._steps}  {line}")

    def _line(self, step: int, values: dict[str, Any], losses: list[str]) -> str:
        remaining = (self._steps - step) * (time.monotonic() - self._started) / (step - self._first_step)
        parts = ", ".join(f"{_SHORT_NAMES.get(name, name)} {values[name]:.4f}" for name in losses if name != "loss")
        return (
            f"step {step}/{self._steps}  epoch {values['epoch']:.2f}  loss {values['loss']:.4f} ({parts})  "
            f"lr {values['learning_rate']:.2e}  {values['samples_per_second']:.1f} samples/s  "
            f"data wait {values['data_wait']:.1%}  communication {values['communication']:.1%}  "
            f"{_state(values)}ETA {duration(remaining)}"
        )


def _state(values: dict[str, float]) -> str:
    """Return gradient norm, utilization and memory, as far as they are known, for the progress line."""
    shown = {
        "gradient_norm": lambda value: f"gradient norm {value:.2f}",
        "mfu": lambda value: f"MFU {value:.1%}",
        "memory_gib": lambda value: f"memory {value:.1f} GiB",
    }
    return "".join(f"{text(values[name])}  " for name, text in shown.items() if name in values)


def _validation_line(values: dict[str, float]) -> str:
    measures = {
        key.removeprefix("validation/"): value for key, value in values.items() if key.startswith("validation/")
    }
    parts = (f"{name.replace('_', ' ')} {value:.3f}" for name, value in measures.items())
    return f"validation: {', '.join(parts)}" if measures else ""
