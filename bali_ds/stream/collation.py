"""From sample rows to the arrays of a batch, all samples at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bali_ds.errors import InputError
from bali_ds.graph.store import KnowledgeGraph
from bali_ds.randomness import Keys, derive
from bali_ds.shards.store import ShardSet
from bali_ds.stream.blocks import Block, pack
from bali_ds.stream.masking import Vocabulary, mask_names, mask_passages, visit_keys
from bali_ds.stream.ragged import Ints, ranges, starts
from bali_ds.stream.reader import SampleReader, Samples
from bali_ds.stream.settings import StreamSettings
from bali_ds.stream.soundness import REASONS, Replacement, find_faults, substitutes
from bali_ds.stream.stars import Stars, draw_names, draw_stars
from bali_ds.stream.views import Views, find_views, mention_tokens

BatchArrays = Mapping[str, NDArray[np.int64] | tuple[Block, ...]]
"""The fields of `bali_ds.stream.batch.Batch` by name, as numpy arrays."""

_ATTEMPTS = 20

BLOCK_FIELDS = ("passages", "names")


Replacements = tuple[Replacement, ...]


class Drawn(NamedTuple):
    """Samples with all that is drawn for them alone; positions count through all their tokens, nodes and views.

    Attributes:
        samples: as stored.
        views: their distinct concepts.
        masked: int64 [T], the tokens to show.
        labelled: int64 [K], positions of tokens to predict, ascending.
        mention_tokens: int64 [P], positions of tokens of mentions.
        mention_views: int64 [P], the view of each, ascending.
        stars: the drawn neighbourhoods.
        names: int64 [N], the drawn name of each node.
        hidden: bool [N], whether that name is masked.
    """

    samples: Samples
    views: Views
    masked: Ints
    labelled: Ints
    mention_tokens: Ints
    mention_views: Ints
    stars: Stars
    names: Ints
    hidden: NDArray[np.bool_]


@dataclass(frozen=True)
class Collator:
    """Makes batches of one shard set, its graph and its settings."""

    shards: ShardSet
    graph: KnowledgeGraph
    settings: StreamSettings
    vocabulary: Vocabulary
    reader: SampleReader

    @classmethod
    def of(cls, shards: ShardSet, graph: KnowledgeGraph, settings: StreamSettings) -> "Collator":
        """Return a collator.

        Raises:
            InputError: the graph is not the one that the shards were built from.
        """
        wanted = shards.index["graph_fingerprint"]
        if graph.fingerprint != wanted:
            raise InputError(
                f"{shards.path}: was built from the graph {wanted}, but {graph.path} is {graph.fingerprint}; "
                "name that graph or build the shards again"
            )
        return cls(shards, graph, settings, Vocabulary.from_index(shards.index["tokenizer"]), SampleReader(shards))

    def collate(self, rows: Ints, epoch: int, chunks: int = 1) -> tuple[tuple[BatchArrays, ...], Replacements]:
        """Return the batches of sample rows as visited in an epoch, and which samples others had to replace.

        Whatever does not depend on the other samples of a batch is done for all batches at once.

        Args:
            rows: int64 [n], rows of the sample table.
            epoch: decides what is drawn and masked.
            chunks: batches of n / chunks samples each, in the order of the rows.

        Raises:
            InputError: a tar cannot be read, or hardly any sample can be used.
        """
        samples, views, replaced = self._read(rows, epoch)
        visits = visit_keys(self.settings.seed, epoch, samples.rows)
        drawn = self._draw(samples, views, visits)
        bounds = np.linspace(0, rows.size, chunks + 1).astype(np.int64)
        return tuple(self._batch(drawn, *bound) for bound in pairwise(bounds.tolist())), replaced

    def _draw(self, samples: Samples, views: Views, visits: Keys) -> Drawn:
        """Mask and draw for all samples."""
        settings = self.settings
        tokens, token_views = mention_tokens(samples, views)
        mentioned = np.zeros(samples.tokens.size, bool)
        mentioned[tokens] = True
        masked, labelled = mask_passages(
            samples.tokens, samples.lengths, mentioned, visits, settings, self.vocabulary
        )  # fmt: skip
        keys = derive(visits[views.samples], views.concepts)
        stars = draw_stars(
            views.concepts, keys, samples.edges, views.edge_begins, views.edge_counts, settings.fan_out,
            self.graph.num_relations,
        )  # fmt: skip
        hidden = np.zeros(stars.concepts.size, bool)
        hidden[stars.targets] = mask_names(keys, views.edge_counts, settings)
        names = draw_names(stars, keys, self.graph.name_offsets)
        return Drawn(samples, views, masked, labelled, tokens, token_views, stars, names, hidden)

    def _batch(self, drawn: Drawn, first: int, last: int) -> BatchArrays:
        """Pack the samples from `first` to before `last`."""
        samples, stars, settings = drawn.samples, drawn.stars, self.settings
        lengths = samples.lengths[first:last]
        token = int(samples.lengths[:first].sum())
        tokens = slice(token, token + int(lengths.sum()))
        packed = pack(drawn.masked[tokens], lengths, settings.passage_blocks, self.vocabulary.pad_id, self._dummy)
        flat_positions = ranges(packed.origins, lengths)
        labelled = drawn.labelled[slice(*np.searchsorted(drawn.labelled, (tokens.start, tokens.stop)))]

        views = slice(*np.searchsorted(drawn.views.samples, (first, last)).tolist())
        mentions = slice(*np.searchsorted(drawn.mention_views, (views.start, views.stop)))
        nodes = slice(*np.searchsorted(stars.views, (views.start, views.stop)).tolist())
        # Each star has one node more than facts; all messages of one direction precede those of the other.
        facts = np.arange(nodes.start - views.start, nodes.stop - views.stop)
        messages = np.concatenate([facts, facts + stars.edge_relations.size // 2])
        names, node_names = self._names(drawn.names[nodes], drawn.hidden[nodes])
        return {
            "passages": packed.blocks,
            "names": names,
            "labelled_tokens": flat_positions[labelled - token],
            "labels": samples.tokens[labelled],
            "mention_tokens": flat_positions[drawn.mention_tokens[mentions] - token],
            "mention_views": drawn.mention_views[mentions] - views.start,
            "concept_ids": drawn.views.concepts[views],
            "node_names": node_names,
            "edge_index": stars.edge_index[:, messages] - nodes.start,
            "edge_relations": stars.edge_relations[messages],
            "targets": stars.targets[views] - nodes.start,
            "sample_ids": samples.rows[first:last],
        }

    def _read(self, rows: Ints, epoch: int) -> tuple[Samples, Views, Replacements]:
        """Read samples, and others in place of the bad ones, until all are sound."""
        settings, chosen, reasons = self.settings, rows, np.zeros_like(rows)
        for attempt in range(_ATTEMPTS):
            samples = self.reader.read(chosen)
            views = find_views(samples, self.graph.num_concepts)
            faults = find_faults(samples, views.stray_edges, self.shards)
            if not faults.any():
                changed = np.flatnonzero(reasons)
                triples = zip(rows[changed].tolist(), chosen[changed].tolist(), reasons[changed].tolist(), strict=True)
                return samples, views, tuple(Replacement(row, by, REASONS[reason]) for row, by, reason in triples)
            reasons = np.where(reasons, reasons, faults)
            others = substitutes(settings.seed, epoch, rows, attempt, self.shards.split(settings.split))
            chosen = np.where(faults, others, chosen)
        raise InputError(f"{self.shards.path}: hardly any sample can be used; see: bali-ds shards lint")

    def _names(self, names: Ints, hidden: NDArray[np.bool_]) -> tuple[tuple[Block, ...], Ints]:
        """Encode each distinct name once; names hidden behind equally many [MASK]s are one name.

        A concept without a name, or whose name has no token, is one [MASK].
        """
        vocabulary, table = self.vocabulary, self.shards.names
        num_names = table.offsets.size - 1
        sizes = np.where(names < 0, 0, table.offsets[names + 1] - table.offsets[names])
        codes = np.where(hidden | (sizes == 0), num_names + np.maximum(sizes, 1), names)
        distinct, of_node = np.unique(codes, return_inverse=True)
        shown = distinct[distinct < num_names]
        begins_in_table = table.offsets[shown]
        lengths = np.concatenate([table.offsets[shown + 1] - begins_in_table, distinct[shown.size :] - num_names])
        begins = starts(lengths + 2)
        tokens = np.full(int(lengths.sum()) + 2 * lengths.size, vocabulary.mask_id, np.int64)
        tokens[begins], tokens[begins + lengths + 1] = vocabulary.cls_id, vocabulary.sep_id
        lengths_shown = lengths[: shown.size]
        tokens[ranges(begins[: shown.size] + 1, lengths_shown)] = table.tokens[ranges(begins_in_table, lengths_shown)]
        packed = pack(tokens, lengths + 2, self.settings.name_blocks, vocabulary.pad_id, self._dummy)
        return packed.blocks, packed.rows[of_node]

    @property
    def _dummy(self) -> tuple[int, int]:
        return self.vocabulary.cls_id, self.vocabulary.sep_id
