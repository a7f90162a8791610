"""From sample indices to the arrays of batches, all samples at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from bali_ds.bus_errors import bus_errors_raised
from bali_ds.data.batch import Batch, PackedSequences
from bali_ds.data.batch_part import BatchSlice, NamesToEncode, SampledInputs, SampleSource
from bali_ds.data.ego_graphs import ConceptViews, find_views
from bali_ds.data.masking import mark_mentions, prepend_prompt, sample_keys
from bali_ds.data.mixture import Mixture
from bali_ds.data.name_codes import name_codes, name_tokens
from bali_ds.data.packing import pack, pack_masked
from bali_ds.data.reader import SampleReader, Samples
from bali_ds.data.sample_validation import REASONS, Replacement, find_faults, substitutes
from bali_ds.data.sampler import SampleIndices
from bali_ds.data.sampling import open_source, sample_inputs
from bali_ds.data.sequences import Flags, Ints, TokenSequences
from bali_ds.data.settings import StreamSettings
from bali_ds.errors import InputError
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.shards.shard_set import ShardSet

_ATTEMPTS = 20

Replacements = tuple[Replacement, ...]


@dataclass(frozen=True)
class Collator:
    """Makes batches from one mixture of shard sets, its graph and its settings."""

    source: SampleSource
    settings: StreamSettings
    reader: SampleReader

    @classmethod
    def of(cls, shards: ShardSet | Mixture, graph: KnowledgeGraph, settings: StreamSettings) -> "Collator":
        """Return a collator.

        Raises:
            InputError: the graph is not the one that the shards were built from, or their index has other counts.
        """
        mixture = Mixture.of(shards)
        for each in mixture.sets:
            each.check_graph(graph)
        return cls(open_source(mixture, graph, settings), settings, SampleReader(mixture))

    @bus_errors_raised()
    def collate(self, indices: SampleIndices, micro_batches: int = 1) -> list[tuple[Batch[Ints], Replacements]]:
        """Return batches of samples, each with its bad samples and what replaced them.

        Whatever does not depend on the other samples of a batch is computed for all batches at once.

        Args:
            indices: of n samples.
            micro_batches: batches of n / micro_batches samples each, in the order of the indices.

        Raises:
            InputError: a tar cannot be read, or hardly any sample can be used.
        """
        settings = self.settings
        samples, views, replaced = self._read(indices)
        if settings.markers:
            samples = mark_mentions(samples, *settings.markers)
        if settings.prompt:
            samples = prepend_prompt(samples, settings.prompt)
        keys = sample_keys(settings.seed, indices.repeats, samples.sample_rows)
        inputs = sample_inputs(samples, views, keys, self.source, settings)
        parts = [part.sample(inputs) for part in settings.parts]
        count = samples.sample_rows.size
        return [
            (
                self._batch(inputs, parts, first, last),
                tuple(replaced[at] for at in range(first, last) if at in replaced),
            )
            for first, last in pairwise(range(0, count + 1, count // micro_batches))
        ]

    def _batch(self, inputs: SampledInputs, sampled: Sequence[Any], first: int, last: int) -> Batch[Ints]:
        """Collate the samples from `first` to before `last`; `sampled` is what each part sampled."""
        ego_graphs, settings, vocabulary = inputs.ego_graphs, self.settings, self.source.vocabulary
        passages = pack_masked(inputs.passages, first, last, vocabulary)
        views = _range(inputs.views.samples, first, last)
        texts = _range(inputs.text_views, views.start, views.stop)
        mentions = _range(inputs.mention_views, texts.start, texts.stop)
        nodes = _range(ego_graphs.views, views.start, views.stop)
        # each ego graph has one node more than facts
        facts = np.arange(nodes.start - views.start, nodes.stop - views.stop)
        piece = BatchSlice(inputs, slice(first, last), views, nodes, facts, passages, name_rows=facts[:0])
        passing = facts[~self._withheld(inputs, sampled)[facts]]
        messages = np.concatenate([passing, passing + ego_graphs.num_facts])
        wanted = [part.names(own, views) for part, own in zip(settings.parts, sampled, strict=True)]
        names, node_names, rows_of_parts = self._names(piece, wanted)
        linearized = settings.with_graph and settings.graph_view == "linearized"
        neighborhoods = pack_masked(inputs.neighborhoods, views.start, views.stop, vocabulary if linearized else None)
        return Batch(
            passages=passages.packed,
            names=names,
            labeled_tokens=passages.labeled,
            labels=passages.labels,
            mention_tokens=passages.positions[inputs.mention_tokens[mentions] - passages.first_token],
            mention_views=inputs.mention_views[mentions] - texts.start,
            text_views=inputs.text_views[texts] - views.start,
            concept_ids=inputs.views.concept_ids[views],
            node_names=node_names,
            edge_index=ego_graphs.edge_index[:, messages] - nodes.start,
            edge_relations=ego_graphs.edge_relations[messages],
            targets=ego_graphs.targets[views] - nodes.start,
            sample_rows=inputs.samples.sample_rows[first:last],
            neighborhoods=neighborhoods.packed,
            neighborhood_rows=neighborhoods.rows,
            graph_labeled_tokens=neighborhoods.labeled,
            graph_labels=neighborhoods.labels,
            parts={
                part.name: part.collate(own, piece._replace(name_rows=rows))
                for part, own, rows in zip(settings.parts, sampled, rows_of_parts, strict=True)
            },
        )

    def _withheld(self, inputs: SampledInputs, sampled: Sequence[Any]) -> Flags:
        """Return which facts any part keeps from passing messages, bool [F]."""
        withheld = np.zeros(inputs.ego_graphs.num_facts, bool)
        for part, own in zip(self.settings.parts, sampled, strict=True):
            facts = part.withheld_facts(own)
            if facts is not None:
                withheld |= facts
        return withheld

    def _read(self, indices: SampleIndices) -> tuple[Samples, ConceptViews, dict[int, Replacement]]:
        """Read samples, and others in place of bad ones, until all are valid; return replacements by position."""
        settings, shards = self.settings, self.source.shards
        wanted, repeats = indices
        sample_rows, reasons = wanted, np.zeros_like(wanted)
        for attempt in range(_ATTEMPTS):
            samples = self.reader.read(sample_rows)
            views = find_views(samples)
            faults = find_faults(samples, views.misordered, shards)
            if not faults.any():
                replaced = {
                    at: Replacement(int(wanted[at]), int(sample_rows[at]), REASONS[reasons[at]])
                    for at in np.flatnonzero(reasons).tolist()
                }
                return samples, views, replaced
            reasons = np.where(reasons, reasons, faults)
            others = substitutes(settings.seed, repeats, wanted, attempt, shards, settings.split)
            sample_rows = np.where(faults, others, sample_rows)
        raise InputError(
            f"{shards.name}: hardly any sample can be used, {_ATTEMPTS} replacements in a row were bad; "
            "check the shards with: bali-ds shards lint"
        )

    def _names(
        self, piece: BatchSlice, wanted: Sequence[NamesToEncode | None]
    ) -> tuple[PackedSequences[Ints], Ints, list[Ints]]:
        """Return the names to encode, what the nodes refer to, and the rows of the names of each part."""
        settings, inputs, nodes = self.settings, piece.inputs, piece.nodes
        extra = [names or NamesToEncode(piece.facts[:0]) for names in wanted]
        ids = np.concatenate([inputs.node_names[nodes], *(names.name_ids for names in extra)])
        hidden = np.zeros(ids.size, bool)
        count = nodes.stop - nodes.start
        hidden[:count] = inputs.hidden[nodes]
        codes = name_codes(ids, hidden, self.source.shards.names)
        if settings.name_rows or settings.concept_rows:
            concept_ids = np.where(hidden[:count], self.source.graph.num_concepts, inputs.ego_graphs.concept_ids[nodes])
            refers_to = concept_ids if settings.concept_rows else codes[:count]
            return pack(codes[:0], codes[:0]).packed, refers_to, [codes[:0]] * len(extra)
        spelled = TokenSequences.join([names.spelled for names in extra])
        packed, rows, spelled_rows = self._pack_names(codes, spelled)
        ends = count + np.cumsum([0, *(names.name_ids.size for names in extra)])
        spelled_ends = np.cumsum([0, *(names.spelled.lengths.size for names in extra)])
        rows_of_parts = [
            np.concatenate([rows[begin:end], spelled_rows[first:last]])
            for (begin, end), (first, last) in zip(pairwise(ends), pairwise(spelled_ends), strict=True)
        ]
        return packed, rows[:count], rows_of_parts

    def _pack_names(self, codes: Ints, spelled: TokenSequences) -> tuple[PackedSequences[Ints], Ints, Ints]:
        """Pack each distinct name once, and all spelled ones; return the rows of codes and of spelled, too."""
        settings, vocabulary = self.settings, self.source.vocabulary
        ego_graphs = settings.with_graph and settings.graph_view == "ego_graph"
        any_names = ego_graphs or any(part.encodes_names for part in settings.parts)
        distinct, of_code = np.unique(codes, return_inverse=True)
        names = name_tokens(distinct, self.source.shards.names, vocabulary.mask_id)
        framed = TokenSequences.join([names, spelled]).framed(vocabulary.cls_id, vocabulary.sep_id)
        packing = pack(*framed, vocabulary if any_names else None)
        return packing.packed, packing.rows[of_code], packing.rows[distinct.size :]


def _range(ascending: Ints, first: int, last: int) -> slice:
    """Return where the values from `first` to before `last` are."""
    return slice(*np.searchsorted(ascending, (first, last)).tolist())
