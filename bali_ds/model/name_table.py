"""Name table: cached vectors of all names, recomputed every so many steps."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from bali_ds.data.batch import PackedSequences
from bali_ds.data.name_codes import name_tokens
from bali_ds.data.packing import pack
from bali_ds.distributed import Ranks
from bali_ds.model.text_encoder import TextEncoder
from bali_ds.shards.shard_set import Names

_ROWS = 256
NEVER = -1


class NameTable(nn.Module):
    """Vectors of every name, and of 0, 1, ..., `longest` masks for names that are hidden.

    All ranks together encode the names, without gradient and dropout; the vectors are constant until the next refresh.
    The table takes (names + longest + 1) * d numbers on every rank and is part of a checkpoint.

    Args:
        names: the tokens of all names.
        width: d.
        refresh_every: calls in training after which the vectors are recomputed.
        special: ids of [CLS], [SEP] and [MASK].
        longest: most tokens of a name.
    """

    vectors: torch.Tensor
    age: torch.Tensor

    def __init__(
        self, names: Names, width: int, *, refresh_every: int, special: tuple[int, int, int], longest: int
    ) -> None:
        super().__init__()
        self.names = names
        self.refresh_every = refresh_every
        self.special = special
        self.longest = longest
        self.register_buffer("vectors", torch.zeros(names.offsets.size + longest, width))
        self.register_buffer("age", torch.tensor([NEVER]))

    def keep_fresh(self, text: TextEncoder) -> None:
        """Compute the vectors if they are too old or do not exist; every rank calls this once a step."""
        if self.vectors.is_meta:
            return
        age = int(self.age)
        if age == NEVER or (self.training and age >= self.refresh_every):
            self._refresh(text)
            age = 0
        self.age.fill_(age + self.training)

    @torch.no_grad()
    def _refresh(self, text: TextEncoder) -> None:
        ranks, training = Ranks.of(None), text.training
        text.eval()
        self.vectors.zero_()
        for rows, packed in self._packs(ranks.rank, ranks.world_size):
            vectors = text.name_vectors(packed.to(self.vectors.device))
            self.vectors[torch.from_numpy(rows).to(self.vectors.device)] = vectors[: rows.size].to(self.vectors.dtype)
        if ranks.world_size > 1:
            dist.all_reduce(self.vectors)
        text.train(training)

    def _packs(self, rank: int, world_size: int) -> Iterator[tuple[np.ndarray, PackedSequences]]:
        """Yield rows of the table and their tokens, shortest first; every rank has equally many packs."""
        cls_id, sep_id, mask_id = self.special
        lengths = np.concatenate([np.diff(self.names.offsets), np.arange(self.longest + 1)])
        order = np.argsort(lengths, kind="stable")
        packs = -(-order.size // (_ROWS * world_size)) * world_size
        for number in range(rank, packs, world_size):
            rows = order[number * _ROWS : (number + 1) * _ROWS]
            wanted = rows if rows.size else order[:1]  # every rank must call the encoder equally often
            packed = pack(*name_tokens(wanted, self.names, mask_id).framed(cls_id, sep_id)).packed
            yield rows, packed.map(torch.from_numpy)
