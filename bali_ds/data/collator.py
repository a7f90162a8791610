"""From sample rows to the arrays of a batch, all samples at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from bali_ds.data.ego_graphs import ConceptViews, Stars, find_views
from bali_ds.data.length_buckets import LengthBucket, PackedTexts, pack, pack_texts
from bali_ds.data.linearized import Strings, part_of
from bali_ds.data.masking import Vocabulary, mark_mentions, visit_keys
from bali_ds.data.mixture import Mixture
from bali_ds.data.objective_inputs import nothing_side_by_side, side_by_side
from bali_ds.data.ragged import Ints, ranges, starts
from bali_ds.data.reader import SampleReader, Samples
from bali_ds.data.sample_validation import REASONS, Replacement, find_faults, substitutes
from bali_ds.data.sampler import Visits
from bali_ds.data.sampling import Drawing, Drawn
from bali_ds.data.settings import StreamSettings
from bali_ds.errors import InputError
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.shards.shard_set import ShardSet

BatchArrays = Mapping[str, NDArray[np.int64] | tuple[LengthBucket, ...]]
"""The fields of `bali_ds.data.batch.Batch` by name, as numpy arrays."""

_ATTEMPTS = 20

BLOCK_FIELDS = ("passages", "names", "neighborhoods", "originals", "triples")

Replacements = tuple[Replacement, ...]


@dataclass(frozen=True)
class Collator:
    """Makes batches of one shard set, its graph and its settings."""

    shards: Mixture
    graph: KnowledgeGraph
    settings: StreamSettings
    vocabulary: Vocabulary
    reader: SampleReader
    drawing: Drawing

    @classmethod
    def of(cls, shards: ShardSet | Mixture, graph: KnowledgeGraph, settings: StreamSettings) -> "Collator":
        """Return a collator.

        Raises:
            InputError: the graph is not the one that the shards were built from, or their index counts otherwise.
        """
        mixture = Mixture.of(shards)
        for each in mixture.sets:
            each.check_graph(graph)
        vocabulary = Vocabulary.from_index(mixture.index["tokenizer"], settings.markers or ())
        drawing = Drawing.of(mixture, graph, settings, vocabulary)
        return cls(mixture, graph, settings, vocabulary, SampleReader(mixture), drawing)

    def collate(self, visits: Visits, micro_batches: int = 1) -> list[tuple[BatchArrays, Replacements]]:
        """Return the batches of visited samples, each with the samples in it that others had to replace.

        Whatever does not depend on the other samples of a batch is done for all batches at once.

        Args:
            visits: n samples.
            micro_batches: batches of n / micro_batches samples each, in the order of the visits.

        Raises:
            InputError: a tar cannot be read, or hardly any sample can be used.
        """
        samples, views, replaced = self._read(visits)
        if self.settings.markers:
            samples = mark_mentions(samples, *self.settings.markers)
        drawn = self.drawing.draw(samples, views, visit_keys(self.settings.seed, visits.occasions, samples.rows))
        bounds = pairwise(range(0, samples.rows.size + 1, samples.rows.size // micro_batches))
        return [
            (self._batch(drawn, first, last), tuple(replaced[at] for at in range(first, last) if at in replaced))
            for first, last in bounds
        ]

    def _batch(self, drawn: Drawn, first: int, last: int) -> BatchArrays:
        """Pack the samples from `first` to before `last`."""
        stars, settings, vocabulary = drawn.stars, self.settings, self.vocabulary
        passages = pack_texts(drawn.passages, first, last, settings.passage_blocks, vocabulary)
        views = slice(*np.searchsorted(drawn.views.samples, (first, last)).tolist())
        texts = slice(*np.searchsorted(drawn.text_views, (views.start, views.stop)).tolist())
        mentions = slice(*np.searchsorted(drawn.mention_views, (texts.start, texts.stop)))
        nodes = slice(*np.searchsorted(stars.views, (views.start, views.stop)).tolist())
        # Each star has one node more than facts; all messages of one direction precede those of the other.
        facts = np.arange(nodes.start - views.start, nodes.stop - views.stop)
        kept, held = facts[~drawn.held[facts]], facts[drawn.held[facts]]
        messages = np.concatenate([kept, kept + stars.edge_relations.size // 2])
        pairs = slice(*np.searchsorted(drawn.synonyms.views, (views.start, views.stop)).tolist())
        named = np.concatenate([drawn.names[nodes], drawn.synonyms.first[pairs], drawn.synonyms.second[pairs]])
        masked = np.zeros(named.size, bool)
        masked[: nodes.stop - nodes.start] = drawn.hidden[nodes]
        spelled = part_of(drawn.synonyms.mentions, pairs.start, pairs.stop)
        names, name_rows = self._names(named, masked, spelled)
        node_names, synonyms = np.split(name_rows, [nodes.stop - nodes.start])
        if settings.concept_rows:
            node_names = np.where(drawn.hidden[nodes], self.graph.num_concepts, stars.concepts[nodes])
        blocks = settings.passage_blocks * (settings.with_graph and settings.graph_view == "linearized")
        neighborhoods = pack_texts(drawn.neighborhoods, views.start, views.stop, blocks, vocabulary)
        return {
            "passages": passages.blocks,
            "names": names,
            "labeled_tokens": passages.labeled,
            "labels": passages.labels,
            "mention_tokens": passages.positions[drawn.mention_tokens[mentions] - passages.first_token],
            "mention_views": drawn.mention_views[mentions] - texts.start,
            "text_views": drawn.text_views[texts] - views.start,
            "concept_ids": drawn.views.concepts[views],
            "node_names": node_names,
            "edge_index": stars.edge_index[:, messages] - nodes.start,
            "edge_relations": stars.edge_relations[messages],
            "targets": stars.targets[views] - nodes.start,
            "sample_ids": drawn.samples.rows[first:last],
            "neighborhoods": neighborhoods.blocks,
            "neighborhood_rows": neighborhoods.rows,
            "graph_labeled_tokens": neighborhoods.labeled,
            "graph_labels": neighborhoods.labels,
            "held_out": self._held_out(stars, held, nodes.start),
            "synonyms": synonyms.reshape(2, -1),
            "synonym_ids": drawn.views.concepts[drawn.synonyms.views[pairs]],
            **self._side_by_side(drawn, first, last, passages, nodes),
        }

    def _held_out(self, stars: Stars, held: Ints, first_node: int) -> NDArray[np.int64]:
        neighbors, centers = stars.edge_index[:, held]
        concepts = stars.concepts[neighbors]
        return np.stack([centers - first_node, stars.edge_relations[held], neighbors - first_node, concepts])

    def _side_by_side(self, drawn: Drawn, first: int, last: int, passages: PackedTexts, nodes: slice) -> BatchArrays:
        if not self.settings.triples:
            return nothing_side_by_side()
        owners = drawn.views.samples[drawn.stars.views[nodes]] - first
        return side_by_side(
            part_of(Strings(drawn.samples.tokens, drawn.samples.lengths), first, last),
            part_of(drawn.triples, first, last),
            passages,
            np.bincount(owners, minlength=last - first),
            self.vocabulary,
        )

    def _read(self, visits: Visits) -> tuple[Samples, ConceptViews, dict[int, Replacement]]:
        """Read samples, and others in place of the bad ones, until all are sound; what was replaced, by place."""
        settings, (rows, occasions) = self.settings, visits
        chosen, reasons = rows, np.zeros_like(rows)
        for attempt in range(_ATTEMPTS):
            samples = self.reader.read(chosen)
            views = find_views(samples)
            faults = find_faults(samples, views.stray_edges, self.shards)
            if not faults.any():
                replaced = {
                    at: Replacement(int(rows[at]), int(chosen[at]), REASONS[reasons[at]])
                    for at in np.flatnonzero(reasons).tolist()
                }
                return samples, views, replaced
            reasons = np.where(reasons, reasons, faults)
            others = substitutes(settings.seed, occasions, rows, attempt, self.shards, settings.split)
            chosen = np.where(faults, others, chosen)
        raise InputError(f"{self.shards.name}: hardly any sample can be used; see: bali-ds shards lint")

    def _names(self, names: Ints, hidden: NDArray[np.bool_], spelled: Strings) -> tuple[tuple[LengthBucket, ...], Ints]:
        """Encode each distinct name once, then what is spelled out; return the blocks and the rows of both.

        Names hidden behind equally many [MASK]s are one name. A concept without a name, or whose name has no token,
        is one [MASK].
        """
        vocabulary, table = self.vocabulary, self.shards.names
        num_names = table.offsets.size - 1
        sizes = np.where(names < 0, 0, table.offsets[names + 1] - table.offsets[names])
        codes = np.where(hidden | (sizes == 0), num_names + np.maximum(sizes, 1), names)
        settings = self.settings
        if settings.name_rows or settings.concept_rows:
            return (), codes
        wanted = (settings.with_graph and settings.graph_view == "star") or settings.synonyms
        blocks = settings.name_blocks if wanted else 0
        distinct, of_node = np.unique(codes, return_inverse=True)
        shown = distinct[distinct < num_names]
        begins_in_table = table.offsets[shown]
        masks = distinct[shown.size :] - num_names
        lengths = np.concatenate([table.offsets[shown + 1] - begins_in_table, masks, spelled.lengths])
        begins = starts(lengths + 2)
        tokens = np.full(int(lengths.sum()) + 2 * lengths.size, vocabulary.mask_id, np.int64)
        tokens[begins], tokens[begins + lengths + 1] = vocabulary.cls_id, vocabulary.sep_id
        lengths_shown = lengths[: shown.size]
        tokens[ranges(begins[: shown.size] + 1, lengths_shown)] = table.tokens[ranges(begins_in_table, lengths_shown)]
        tokens[ranges(begins[distinct.size :] + 1, spelled.lengths)] = spelled.tokens
        packed = pack(tokens, lengths + 2, blocks, vocabulary.pad_id, (vocabulary.cls_id, vocabulary.sep_id))
        return packed.blocks, packed.rows[np.concatenate([of_node, np.arange(distinct.size, lengths.size)])]
