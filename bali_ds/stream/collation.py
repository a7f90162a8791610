"""From sample rows to the arrays of a batch, all samples at once."""

from collections.abc import Mapping
from dataclasses import dataclass
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
from bali_ds.stream.stars import draw_names, draw_stars

BatchArrays = Mapping[str, NDArray[np.int64] | tuple[Block, ...]]
"""The fields of `bali_ds.stream.batch.Batch` by name, as numpy arrays."""

_ATTEMPTS = 20

BLOCK_FIELDS = ("passages", "names")


class Views(NamedTuple):
    """The distinct concepts of each sample, by sample, then by order of first mention.

    Attributes:
        samples: int64 [V], the sample of each view, counted within the batch.
        concepts: int64 [V], the concept of each view.
        of_mention: int64 [M], the view that each mention belongs to.
        edge_begins: int64 [V], the first stored edge of each view.
        edge_counts: int64 [V], stored edges of each view.
        stray_edges: int64, samples with edges that do not follow their concepts in order of first mention.
    """

    samples: Ints
    concepts: Ints
    of_mention: Ints
    edge_begins: Ints
    edge_counts: Ints
    stray_edges: Ints


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

    def collate(self, rows: Ints, epoch: int) -> tuple[BatchArrays, tuple[Replacement, ...]]:
        """Return the batch of sample rows as visited in an epoch, and which of them others had to replace.

        Raises:
            InputError: a tar cannot be read, or hardly any sample can be used.
        """
        samples, views, replaced = self._read(rows, epoch)
        visits = visit_keys(self.settings.seed, epoch, samples.rows)
        view_keys = derive(visits[views.samples], views.concepts)
        tokens, token_views = mention_tokens(samples, views)
        arrays: BatchArrays = {
            **self._passages(samples, visits, tokens),
            "mention_views": token_views,
            "concept_ids": views.concepts,
            **self._graph(samples, views, view_keys),
            "sample_ids": samples.rows,
        }
        return arrays, replaced

    def _read(self, rows: Ints, epoch: int) -> tuple[Samples, Views, tuple[Replacement, ...]]:
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

    def _passages(self, samples: Samples, visits: Keys, mention_tokens: Ints) -> dict[str, Ints | tuple[Block, ...]]:
        vocabulary, settings = self.vocabulary, self.settings
        mentioned = np.zeros(samples.tokens.size, bool)
        mentioned[mention_tokens] = True
        masked, labelled = mask_passages(samples.tokens, samples.lengths, mentioned, visits, settings, vocabulary)
        packed = pack(masked, samples.lengths, settings.passage_blocks, vocabulary.pad_id, self._dummy)
        flat_positions = ranges(packed.origins, samples.lengths)
        return {
            "passages": packed.blocks,
            "labelled_tokens": flat_positions[labelled],
            "labels": samples.tokens[labelled],
            "mention_tokens": flat_positions[mention_tokens],
        }

    def _graph(self, samples: Samples, views: Views, keys: Keys) -> dict[str, NDArray[np.int64] | tuple[Block, ...]]:
        settings = self.settings
        stars = draw_stars(
            views.concepts, keys, samples.edges, views.edge_begins, views.edge_counts, settings.fan_out,
            self.graph.num_relations,
        )  # fmt: skip
        names = draw_names(stars, keys, self.graph.name_offsets)
        hidden = np.zeros(stars.concepts.size, bool)
        hidden[stars.targets] = mask_names(keys, views.edge_counts, settings)
        blocks, node_names = self._names(names, hidden)
        return {
            "names": blocks,
            "node_names": node_names,
            "edge_index": stars.edge_index,
            "edge_relations": stars.edge_relations,
            "targets": stars.targets,
        }

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


def find_views(samples: Samples, num_concepts: int) -> Views:
    """Return the views of samples: each concept of each passage once."""
    sample_of_mention = np.repeat(np.arange(samples.rows.size), samples.mention_counts)
    mentions = sample_of_mention * num_concepts + samples.mentions[:, 2]
    distinct, first, inverse = np.unique(mentions, return_index=True, return_inverse=True)
    by_first_mention = np.argsort(first)
    view_of_distinct = np.empty_like(by_first_mention)
    view_of_distinct[by_first_mention] = np.arange(by_first_mention.size)

    sample_of_edge = np.repeat(np.arange(samples.rows.size), samples.edge_counts)
    edges = sample_of_edge * num_concepts + samples.edges[:, 0]
    heads = np.flatnonzero(np.diff(edges, prepend=-1))
    sizes = np.diff(heads, append=edges.size)
    places = np.searchsorted(distinct, edges[heads])
    known = np.append(distinct, -1)[places] == edges[heads]
    views = view_of_distinct[places[known]]
    astray = ~known
    astray[known] = np.diff(views, prepend=-1) <= 0
    begins, counts = np.zeros(distinct.size, np.int64), np.zeros(distinct.size, np.int64)
    begins[views], counts[views] = heads[known], sizes[known]
    ordered = first[by_first_mention]
    return Views(
        sample_of_mention[ordered],
        samples.mentions[ordered, 2].astype(np.int64),
        view_of_distinct[inverse],
        begins,
        counts,
        sample_of_edge[heads[astray]],
    )


def mention_tokens(samples: Samples, views: Views) -> tuple[Ints, Ints]:
    """Return the flat token positions of each view's mentions, and the view of each position, int64 [P] each.

    A token inside two mentions of one concept counts once.
    """
    begins, ends = samples.mentions[:, 0].astype(np.int64), samples.mentions[:, 1].astype(np.int64)
    sample_begins = np.repeat(starts(samples.lengths), samples.mention_counts)
    positions = ranges(sample_begins + begins, ends - begins)
    distinct = np.unique(np.repeat(views.of_mention, ends - begins) * samples.tokens.size + positions)
    return distinct % max(samples.tokens.size, 1), distinct // max(samples.tokens.size, 1)
