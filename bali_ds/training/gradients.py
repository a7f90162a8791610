"""This rank's gradients, looked at as they are made: their norms, and whether they are numbers."""

import math
from collections.abc import Callable

import torch
import torch.distributed as dist

from bali_ds.model.aligner import Aligner


class GradientWatch:
    """Norms of the gradients of one backward pass, before ranks average them and ZeRO takes them apart."""

    def __init__(self, aligner: Aligner, *, scaled: bool) -> None:
        """Watch the parameters of a model.

        Args:
            aligner: the model, in its engine or not.
            scaled: whether a loss scaler deals with gradients that overflow, as in fp16.
        """
        self._scaled = scaled
        self._norms: dict[str, torch.Tensor] = {}
        self._loss = torch.zeros(())
        for name, parameter in aligner.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[[torch.Tensor], None]:
        def note(gradient: torch.Tensor) -> None:
            self._norms[name] = torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32)

        return note

    def watched(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss to go backward from; where it is no number, no gradient will be one.

        The cross-entropy of an impossible token, for one, is infinite with gradients that look well.
        """
        self._norms = {}
        self._loss = loss.detach()
        return loss * torch.where(torch.isfinite(self._loss), 1.0, math.nan)

    def agreed(self) -> tuple[float, bool]:
        """Return the loss and whether loss and gradients are numbers, the same on every rank.

        It waits for the backward pass, as the optimiser's step does next for the norm that it clips by.
        """
        norms = torch.stack([torch.zeros_like(self._loss), *self._norms.values()])
        sound = torch.isfinite(self._loss) & (self._scaled | torch.isfinite(norms).all())
        facts = torch.stack([torch.nan_to_num(self._loss, nan=math.inf), (~sound).float()])
        dist.all_reduce(facts, op=dist.ReduceOp.MAX)
        loss, unsound = facts.tolist()
        return loss, not unsound

    def unsound(self) -> list[str]:
        """Return the names of the parameters whose gradient on this rank is no number."""
        return [name for name, norm in self._norms.items() if not math.isfinite(norm)]

    def norms(self) -> dict[str, torch.Tensor]:
        """Return the norm of this rank's gradients of each part of the model, scalars; fp16's are scaled."""
        parts: dict[str, list[torch.Tensor]] = {}
        for name, norm in self._norms.items():
            parts.setdefault(name.partition(".")[0], []).append(norm)
        return {part: torch.linalg.vector_norm(torch.stack(norms)) for part, norms in parts.items()}
