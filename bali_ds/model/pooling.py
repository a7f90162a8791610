"""Pooling of token states to one vector: of mentions, of names."""

import torch
from torch import nn

from bali_ds.data.batch import PackedSequences

POOLINGS = ("mean", "first", "last", "attention")


class MentionPooling(nn.Module):
    """One vector for the tokens of each text view.

    "mean" is their mean, "first" the first and "last" the last of them, "attention" their mean by weights
    softmax(w . h) with a learned w.
    """

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.score = nn.Linear(width, 1, bias=False) if kind == "attention" else None

    def forward(self, values: torch.Tensor, segments: torch.Tensor, num_segments: int) -> torch.Tensor:
        """Return float32 [num_segments, d].

        Args:
            values: float [P, d], states of tokens.
            segments: int64 [P], ascending, the text view of each; every one occurs.
            num_segments: number of text views.
        """
        if self.kind in ("first", "last"):
            numbers = torch.arange(num_segments, device=segments.device)
            after = self.kind == "last"
            return values[torch.searchsorted(segments, numbers, right=after) - int(after)].float()
        if self.score is not None:
            # imported here because it takes seconds, and inference rarely needs it
            from torch_geometric.utils import softmax

            weights = softmax(self.score(values).float(), segments, num_nodes=num_segments)
            sums = weights.new_zeros(num_segments, values.shape[1])
            return sums.index_add(0, segments, weights * values.float())
        return segment_mean(values, segments, num_segments)


def segment_mean(values: torch.Tensor, segments: torch.Tensor, num_segments: int) -> torch.Tensor:
    """Return the mean of the rows of each segment, summed in fp32.

    Args:
        values: float [P, d].
        segments: int64 [P], the segment of each row, each in [0, num_segments).
        num_segments: rows of the result; a segment without rows gives zeros.

    Returns:
        float32 [num_segments, d].
    """
    sums = values.new_zeros(num_segments, values.shape[1], dtype=torch.float32)
    sums = sums.index_add(0, segments, values.float())
    # torch.bincount would wait for the device
    counts = sums.new_zeros(num_segments).index_add(0, segments, sums.new_ones(len(segments)))
    return sums / counts.clamp(min=1)[:, None]


def pool_sequences(
    hidden: torch.Tensor, packed: PackedSequences, pooling: str, prompt: torch.Tensor | None = None
) -> torch.Tensor:
    """Return one vector per sequence, float32 [n, d], under the pooling of mentions.

    With "last" it is the state of the sequence's last token, which a causal decoder computes from all of them; with any
    other, the mean of the inner tokens without those of the prompt.
    """
    if pooling == "last":
        return hidden[packed.offsets[1:] - 1].float()
    return mean_of_inner_tokens(hidden, packed, prompt)


def mean_of_inner_tokens(
    hidden: torch.Tensor, packed: PackedSequences, prompt: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean over the tokens of each sequence between the first and the last, which are special.

    Args:
        hidden: float [T, d].
        packed: n sequences of T tokens.
        prompt: int64 [P], tokens that do not count where a sequence has them after its first token.

    Returns:
        float32 [n, d]; a sequence without such tokens gives zeros.
    """
    count, offsets = len(packed.lengths), packed.offsets
    lengths = offsets.diff()
    rows = torch.repeat_interleave(torch.arange(count, device=offsets.device), lengths, output_size=len(hidden))
    before = offsets.new_zeros(count) if prompt is None else _prompt_lengths(packed, prompt)
    inner = (packed.positions > before[rows]) & (packed.positions < lengths[rows] - 1)
    sums = hidden.new_zeros(count, hidden.shape[1], dtype=torch.float32)
    sums = sums.index_add(0, rows, torch.where(inner[:, None], hidden, 0).float())
    return sums / (lengths - 2 - before).clamp(min=1)[:, None]


def _prompt_lengths(packed: PackedSequences, prompt: torch.Tensor) -> torch.Tensor:
    """Return the tokens of the prompt in each sequence, int64 [n]: all of them or none."""
    places = packed.offsets[:-1, None] + torch.arange(1, len(prompt) + 1, device=prompt.device)
    found = packed.input_ids[places.clamp(max=len(packed.input_ids) - 1)] == prompt
    # what follows a shorter sequence is not its own
    own = places < packed.offsets[1:, None]
    return len(prompt) * (found & own).all(dim=1)
