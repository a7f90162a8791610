"""What a run measures of itself beside its losses, at the steps that are reported and at no other."""

from typing import Any

import deepspeed
import torch
from torch.nn import functional as F

from bali_ds.preflight.flops import StepFlops, peak_of
from bali_ds.stream.loader import Step
from bali_ds.training.cluster import Cluster
from bali_ds.training.communication import Communication
from bali_ds.training.gradients import GradientWatch

_MOST_VIEWS = 1024


class Meter:
    """Speed, use of the hardware, gradient norms, temperature and retrieval within the batch.

    Counting uses what lies on the host; everything else is read when a report waits for the device anyway.
    """

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        cluster: Cluster,
        gradients: GradientWatch,
        flops: StepFlops,
        communication: Communication,
    ) -> None:
        self._engine, self._cluster, self._gradients, self._flops = engine, cluster, gradients, flops
        self._communication = communication
        self._peak = peak_of(torch.cuda.get_device_name()) if cluster.device.type == "cuda" else None
        self._tokens = self._operations = 0

    def count(self, batch: Step) -> None:
        """Count tokens and operations of a step of this rank."""
        for chunk in batch.chunks:
            tokens, operations = self._flops.count(chunk)
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
            gradients; `temperature` where it is learnt; `batch_r@1`, how often the nearest graph view of a text view
            of this rank is one of its concept; `memory_gib` on GPUs.
        """
        rate = self._operations / seconds
        values = {
            "tokens_per_second": self._tokens * self._cluster.world_size / seconds,
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
        if self._cluster.device.type == "cuda":
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
