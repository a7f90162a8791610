"""What the dual objective adds to a batch: passages without masks, and their facts as text."""

from dataclasses import dataclass

import numpy as np

from bali_ds.data.batch import Array, ArrayTree, PaddedSequences
from bali_ds.data.batch_part import BatchPart, BatchSlice, SampledInputs
from bali_ds.data.linearized import facts_of, linearize
from bali_ds.data.name_codes import name_codes, name_tokens
from bali_ds.data.packing import pad
from bali_ds.data.sequences import Ints, TokenSequences, starts


@dataclass(frozen=True)
class PassagesWithFacts(ArrayTree[Array]):
    """What the decoder reads and writes of the B passages of a batch.

    Attributes:
        originals: the passages without masks, in order.
        original_positions: int64 [B, L], the flat position in `Batch.passages` of each of their tokens.
        facts: the facts of each passage as text, B rows.
        passage_nodes: int64 [B, M], M >= 1, the nodes of each passage, then -1.
    """

    originals: PaddedSequences[Array]
    original_positions: Array
    facts: PaddedSequences[Array]
    passage_nodes: Array


@dataclass(frozen=True)
class PassagesWithFactsPart(BatchPart):
    """Adds the passages without masks, and their facts as text, every concept by its preferred name."""

    name = "dual"
    content = PassagesWithFacts
    writes_facts = True

    def sample(self, inputs: SampledInputs) -> TokenSequences:
        """Return the facts of each sample as text."""
        source, ego_graphs = inputs.source, inputs.ego_graphs
        graph, vocabulary = source.graph, source.vocabulary
        begins, ends = (graph.name_offsets[ego_graphs.concept_ids + end].astype(np.int64) for end in (0, 1))
        preferred = np.where(begins < ends, begins, -1)
        table = source.shards.names
        codes = name_codes(preferred, np.zeros(preferred.size, bool), table)
        nodes = name_tokens(codes, table, vocabulary.mask_id)
        facts = facts_of(ego_graphs, graph.num_relations, inputs.views.samples)
        count = inputs.samples.sample_rows.size
        return linearize(facts, nodes, source.relation_names, None, count, source.graph_tokens, vocabulary)

    def collate(self, sampled: TokenSequences, piece: BatchSlice) -> PassagesWithFacts[Ints]:
        """Return the passages and facts of one batch."""
        inputs, first, last = piece.inputs, piece.samples.start, piece.samples.stop
        original = TokenSequences(inputs.samples.tokens, inputs.samples.lengths).part(first, last)
        originals, facts = (
            pad(sequences, inputs.source.vocabulary.pad_id) for sequences in (original, sampled.part(first, last))
        )
        places = np.minimum(np.arange(originals.input_ids.shape[1]), original.lengths[:, None] - 1)
        samples_of_nodes = inputs.views.samples[inputs.ego_graphs.views[piece.nodes]]
        nodes = np.bincount(samples_of_nodes - first, minlength=last - first)
        slots = np.arange(max(int(nodes.max(initial=0)), 1))
        return PassagesWithFacts(
            originals=originals,
            original_positions=piece.passages.origins[:, None] + places,
            facts=facts,
            passage_nodes=np.where(slots < nodes[:, None], starts(nodes)[:, None] + slots, -1),
        )
