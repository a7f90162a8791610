"""Packed sequences from lists of ids, and back."""

from itertools import pairwise

import torch
from transformers import PreTrainedModel

from bali_ds.data.batch import PackedSequences


def pack_of(*rows: list[int]) -> PackedSequences:
    """The rows, shortest first, one after the other."""
    rows = sorted(rows, key=len)
    lengths = [len(row) for row in rows]
    fields = {
        "input_ids": [token for row in rows for token in row],
        "positions": [place for length in lengths for place in range(length)],
        "offsets": [sum(lengths[:number]) for number in range(len(rows) + 1)],
        "lengths": lengths,
    }
    return PackedSequences(**{name: torch.tensor(values, dtype=torch.int64) for name, values in fields.items()})


def random_pack(*lengths: int, vocab_size: int = 50) -> PackedSequences:
    """Sequences of some lengths of ordinary tokens, from torch's generator."""
    return pack_of(*(torch.randint(6, vocab_size, (length,)).tolist() for length in lengths))


def rows_of(packed: PackedSequences) -> list[list[int]]:
    """The sequences of a pack, whose other fields must agree with them."""
    ids = packed.input_ids.tolist()
    rows = [ids[begin:end] for begin, end in pairwise(packed.offsets.tolist())]
    assert packed.lengths.tolist() == [len(row) for row in rows] == sorted(len(row) for row in rows)
    assert packed.positions.tolist() == [place for row in rows for place in range(len(row))]
    assert sum(len(row) for row in rows) == len(ids)
    return rows


def states_one_by_one(encoder: PreTrainedModel, *packs: PackedSequences) -> torch.Tensor:
    """The last hidden states of each sequence, alone in a call of the model: float [T, d]."""
    rows = [torch.tensor([row]) for packed in packs for row in rows_of(packed)]
    return torch.cat([encoder(input_ids=row, attention_mask=torch.ones_like(row)).last_hidden_state[0] for row in rows])
