"""Synonym alignment: two names of a concept, or a name and the words of a mention, attract each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bali_ds.data.batch import Array, ArrayTree
from bali_ds.data.batch_part import BatchPart, BatchSlice, NamesToEncode, SampledInputs
from bali_ds.data.sequences import NO_SEQUENCES, Ints, TokenSequences, ranges, starts
from bali_ds.objectives.objective import EncodedBatch, EncodedViews, Objective, Vectors
from bali_ds.randomness import Keys, below, derive

if TYPE_CHECKING:
    from torch import Tensor

    from bali_ds.config.objectives import SynonymAlignmentConfig


# The scale of negatives in SapBERT's published code, beta of Wang et al. (CVPR 2019).
SAPBERT_SCALE = 60.0


@dataclass(frozen=True)
class SynonymPairs(ArrayTree[Array]):
    """Pairs of names of a batch.

    Attributes:
        rows: int64 [2, S], rows in `Batch.names` of two names of one concept.
        concept_ids: int64 [S], that concept.
    """

    rows: Array
    concept_ids: Array


class SampledPairs(NamedTuple):
    """Pairs of a name of a concept and another name of it, or the words of a mention of it.

    Attributes:
        views: int64 [S], ascending, the view whose concept it is.
        concept_ids: int64 [S].
        first: int64 [S], name ids.
        second: int64 [S], other name ids; empty where mentions take their place.
        mentions: S token sequences; empty where names take their place.
    """

    views: Ints
    concept_ids: Ints
    first: Ints
    second: Ints
    mentions: TokenSequences


_NONE = np.empty(0, np.int64)
NO_PAIRS = SampledPairs(_NONE, _NONE, _NONE, _NONE, NO_SEQUENCES)


@dataclass(frozen=True)
class SynonymPart(BatchPart):
    """Samples a pair of names of each concept.

    Attributes:
        pairs: "names", two names in the graph; "mentions", a name and the words of a mention in the passage.
    """

    name = "synonym_alignment"
    content = SynonymPairs
    encodes_names = True

    pairs: str = "names"

    def sample(self, inputs: SampledInputs) -> SampledPairs:
        """Return the pairs of all views."""
        if self.pairs == "names":
            return sample_name_pairs(inputs.views.concept_ids, inputs.view_keys, inputs.source.graph.name_offsets)
        return sample_named_mentions(inputs)

    def names(self, sampled: SampledPairs, views: slice) -> NamesToEncode:
        """Return both names of each pair of some views."""
        own = _of_views(sampled, views)
        name_ids = np.concatenate([sampled.first[own], sampled.second[own]])
        return NamesToEncode(name_ids, sampled.mentions.part(own.start, own.stop))

    def collate(self, sampled: SampledPairs, piece: BatchSlice) -> SynonymPairs[Ints]:
        """Return the pairs of one batch."""
        concept_ids = sampled.concept_ids[_of_views(sampled, piece.views)]
        return SynonymPairs(piece.name_rows.reshape(2, -1), concept_ids)


def _of_views(sampled: SampledPairs, views: slice) -> slice:
    """Return which pairs are of a range of views."""
    return slice(*np.searchsorted(sampled.views, (views.start, views.stop)).tolist())


def sample_name_pairs(concept_ids: Ints, keys: Keys, name_offsets: NDArray[np.int64]) -> SampledPairs:
    """Sample two of the names of each concept that has several, uniformly and without replacement.

    Args:
        concept_ids: int64 [V], the concept of each view.
        keys: uint64 [V], the key of each view.
        name_offsets: int64 [C + 1], the first name id of each concept.
    """
    begins = name_offsets[concept_ids].astype(np.int64)
    counts = name_offsets[concept_ids + 1].astype(np.int64) - begins
    views = np.flatnonzero(counts > 1)
    begins, counts, keys = begins[views], counts[views], keys[views]
    first = below(derive(keys, "first synonym"), counts)
    step = 1 + below(derive(keys, "second synonym"), counts - 1)
    second = (first + step) % np.maximum(counts, 1)
    return SampledPairs(views, concept_ids[views], begins + first, begins + second, NO_SEQUENCES)


def sample_named_mentions(inputs: SampledInputs) -> SampledPairs:
    """Sample a name of each concept that has one, and one of its mentions in the passage, both uniformly.

    The words of a mention are cut to the length of the longest name; the prompt goes before them.
    """
    samples, views, keys, source = inputs.samples, inputs.views, inputs.view_keys, inputs.source
    name_offsets, longest = source.graph.name_offsets, source.shards.index["max_name_tokens"]
    begins = name_offsets[views.concept_ids].astype(np.int64)
    counts = name_offsets[views.concept_ids + 1].astype(np.int64) - begins
    named = np.flatnonzero(counts)
    names = begins + below(derive(keys, "first synonym"), counts)
    per_view = np.bincount(views.of_mention, minlength=views.concept_ids.size)
    place = starts(per_view) + below(derive(keys, "named mention"), per_view)
    chosen = np.argsort(views.of_mention, kind="stable")[place[named]]
    first_tokens, ends = samples.mentions[chosen, :2].T.astype(np.int64)
    lengths = np.minimum(ends - first_tokens, longest)
    tokens = samples.tokens[ranges(starts(samples.lengths)[views.samples[named]] + first_tokens, lengths)]
    words = TokenSequences(tokens, lengths).with_inserted(source.prompt, 0)
    return SampledPairs(named, views.concept_ids[named], names[named], names[:0], words)


class SynonymAlignment(Objective):
    """SapBERT's loss (Liu et al., NAACL 2021), or NT-Xent, over the pairs of all ranks."""

    name = "synonym_alignment"
    settings: "SynonymAlignmentConfig"

    def batch_part(self) -> SynonymPart:
        """Return the part that samples pairs."""
        return SynonymPart(self.settings.pairs)

    def keep(self, encoded: EncodedBatch) -> Vectors:
        """Return the vectors of both names, float32 [2, S, d], and the concepts.

        They are taken also where S is 0: gradients must reach the same modules on every rank.
        """
        own: SynonymPairs = encoded.batch.parts[self.name]
        return encoded.names[own.rows], own.concept_ids

    def step_loss(self, encoded: Sequence[EncodedViews], logit_scale: "Tensor", logit_bias: "Tensor") -> "Tensor":  # noqa: ARG002
        """Return the loss over all pairs of the step."""
        import torch

        from bali_ds.distributed import all_ranks
        from bali_ds.losses.contrastive import contrastive_loss

        sapbert = self.settings.kind == "multi_similarity"
        concept_ids = torch.cat([views.kept[self.name][1] for views in encoded])
        first, second = torch.cat([views.kept[self.name][0] for views in encoded], dim=1)
        scale = SAPBERT_SCALE if sapbert else 1.0 / self.objective.contrastive.temperature
        kind = "sapbert" if sapbert else "ntxent"
        return contrastive_loss(
            first, second, scale, query_concept_ids=concept_ids, key_concept_ids=concept_ids, kind=kind,
            group=all_ranks(first.device),
        )  # fmt: skip
