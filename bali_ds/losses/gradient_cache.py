"""A loss over more views than can be encoded with gradients at a time (GradCache, Gao et al., RepL4NLP 2021).

The whole batch is encoded without a graph, the loss gives the gradient of every view, and then chunk after chunk is
encoded again with a graph and driven backwards by what its views are owed. Exact, at the price of one more forward
pass. The usual way is simpler: one engine call that encodes chunks under non-reentrant checkpointing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

Chunk = TypeVar("Chunk")


def backward_through_chunks(
    encode: Callable[[Chunk], tuple[Tensor, ...]],
    chunks: Sequence[Chunk],
    loss: Callable[..., Tensor],
    backward: Callable[[Tensor, bool], Any],
) -> Tensor:
    """Drive the gradient of `loss` over all chunks' views into whatever `encode` depends on.

    Dropout draws the same numbers in both passes. Every rank must hold the same number of chunks.

    Args:
        encode: from a chunk to its outputs, float tensors whose first dimension may differ between chunks. An
            output that the chunks share, such as a logit scale, belongs to one chunk alone.
        chunks: at least one.
        loss: from the outputs, each of them concatenated over the chunks, to a scalar.
        backward: called once a chunk with a scalar to differentiate and whether it is the last; see
            `engine_backward` for engines that reduce gradients by themselves.

    Returns:
        The loss, without a graph.

    Raises:
        ValueError: `backward` is the method of an engine that keeps the last chunk's gradient alone unless told
            where accumulation ends.
    """
    if hasattr(getattr(backward, "__self__", None), "set_gradient_accumulation_boundary"):
        raise ValueError(
            "backward: an engine's own backward reduces after every chunk and keeps only the last one's gradient; "
            "pass engine_backward(engine)"
        )
    states, outputs = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_states())
            outputs.append(encode(chunk))
    leaves = [torch.cat(parts).requires_grad_() for parts in zip(*outputs, strict=True)]
    value = loss(*leaves)
    gradients = torch.autograd.grad(value, leaves)
    owed = zip(
        *(
            gradient.split([len(part) for part in parts])
            for gradient, parts in zip(gradients, zip(*outputs, strict=True), strict=True)
        ),
        strict=True,
    )
    for number, (chunk, state, parts) in enumerate(zip(chunks, states, owed, strict=True)):
        with _replayed(state):
            again = encode(chunk)
        surrogate = torch.stack([(output * part).sum() for output, part in zip(again, parts, strict=True)]).sum()
        backward(surrogate, number == len(chunks) - 1)
    return value.detach()


def engine_backward(engine: Any) -> Callable[[Tensor, bool], None]:
    """Return a `backward` for a DeepSpeed engine without gradient accumulation of its own: chunks add up to a step."""

    def backward(surrogate: Tensor, last: bool) -> None:
        engine.set_gradient_accumulation_boundary(last)
        engine.backward(surrogate)

    return backward


def _random_states() -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


@contextmanager
def _replayed(states: tuple[Tensor, Tensor | None]) -> Iterator[None]:
    """Let random numbers repeat from the given states, and go on afterwards as if nothing had been drawn."""
    host, device = states
    with torch.random.fork_rng(devices=[] if device is None else [torch.cuda.current_device()]):
        torch.set_rng_state(host)
        if device is not None:
            torch.cuda.set_rng_state(device)
        yield
