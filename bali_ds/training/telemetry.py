"""What a run says while it goes on: a progress line, metrics.jsonl, TensorBoard."""

import json
import time
from pathlib import Path
from typing import IO, Any

import torch
from torch.utils.tensorboard import SummaryWriter

from bali_ds.stream.loader import Step
from bali_ds.training.checkpoint import Progress
from bali_ds.training.cluster import Cluster
from bali_ds.training.meter import Meter

_SHORT = {"masked_language_model": "mlm"}


class Telemetry:
    """Collects losses and times, and reports them every few steps from rank 0.

    Losses stay tensors until they are reported, so that no step waits for the device.
    """

    def __init__(
        self,
        run: Path,
        cluster: Cluster,
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
            cluster: the ranks.
            meter: what else is measured at the steps that are reported.
            steps: optimiser steps of the whole run.
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
        if cluster.first:
            self.file = _reopened(run / "metrics.jsonl", first_step)
            self.board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step)

    def record(
        self,
        progress: Progress,
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
