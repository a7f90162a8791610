"""Trainings of the linking benchmark, in the process that calls: a recipe on one rank, or pairs of strings."""

import copy
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from bali_ds.config import Recipe
from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.data.name_codes import name_tokens
from bali_ds.data.packing import pack
from bali_ds.data.sequences import TokenSequences, Vocabulary, ranges, starts, within
from bali_ds.losses.contrastive import contrastive_loss
from bali_ds.model.aligner import Aligner
from bali_ds.model.build_model import DTYPES, build_aligner
from bali_ds.objectives.synonym_alignment import SAPBERT_SCALE
from bali_ds.planning.run_data import RunData
from bali_ds.training.engine import learning_rate_factor, parameter_groups
from bench.inputs.linking_split import Mentions

PAIRS = 800  # of a step: as many tokens as a step of the recipe has


@dataclass(frozen=True)
class Trained:
    """A trained model, in float32, and the tokens that its text encoder read."""

    aligner: Aligner
    tokens: int


def train_recipe(recipe: Recipe, device: str) -> Trained:
    """Train a recipe as its only rank, without checkpoints."""
    data = RunData.open(recipe)
    aligner = build_aligner(recipe, 2 * data.graph.num_relations, data.shards).to(device).train()
    with closing(data.loader(recipe, rank=0, world_size=1)) as loader:

        def losses(working: Aligner) -> Iterator[tuple[torch.Tensor, int]]:
            for step in loader:
                batches = step.micro_batches
                tokens = sum(len(batch.passages.input_ids) + len(batch.names.input_ids) for batch in batches)
                yield working([batch.to(working.device) for batch in batches])[0], tokens

        return Trained(aligner, _train(aligner, recipe, losses))


def train_pairs(recipe: Recipe, device: str, mentions: Mentions | None) -> Trained:
    """Train on pairs of names, and of names and mentions if there are any, with SapBERT's loss.

    Every name but the first of each concept is in one pair with a random other name of the concept, and every distinct
    mention in one pair with a random name.
    """
    data = RunData.open(recipe)
    aligner = build_aligner(recipe, 2 * data.graph.num_relations, data.shards).to(device).train()
    pairs = _Pairs(data, Tokenizer.load(recipe.text_encoder.path), mentions, recipe.seed)

    def losses(working: Aligner) -> Iterator[tuple[torch.Tensor, int]]:
        while True:
            first, second, concepts = pairs.draw(PAIRS)
            vectors = []
            for sequences in (first, second):
                packing = pack(*sequences)
                packed = packing.packed.map(torch.from_numpy).to(working.device)
                vectors.append(working.text.name_vectors(packed)[torch.from_numpy(packing.rows).to(working.device)])
            ids = torch.from_numpy(concepts).to(working.device)
            loss = contrastive_loss(*vectors, SAPBERT_SCALE, query_concept_ids=ids, key_concept_ids=ids, kind="sapbert")
            yield loss, first.tokens.size + second.tokens.size

    return Trained(aligner, _train(aligner, recipe, losses))


def _train(aligner: Aligner, recipe: Recipe, losses: Callable[[Aligner], Iterator[tuple[torch.Tensor, int]]]) -> int:
    """Take the recipe's steps on float32 weights; in bf16, on a copy that the gradients come from."""
    dtype, steps = DTYPES[recipe.precision], recipe.steps or 1
    working = aligner if dtype == torch.float32 else copy.deepcopy(aligner).to(dtype)
    groups = parameter_groups(aligner, recipe.optimizer)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6, fused=True)
    own, used = (list(model.parameters()) for model in (aligner, working))
    tokens = 0
    warmup = round(recipe.optimizer.warmup * steps)
    source = losses(working)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["base_learning_rate"] * learning_rate_factor(step, steps=steps, warmup_steps=warmup)
        torch.manual_seed(1000 * recipe.seed + step)
        loss, count = next(source)
        loss.backward()
        tokens += count
        if working is not aligner:
            for parameter, other in zip(own, used, strict=True):
                parameter.grad = None if other.grad is None else other.grad.float()
        torch.nn.utils.clip_grad_norm_(own, recipe.optimizer.gradient_clipping)
        optimizer.step()
        working.zero_grad(set_to_none=True)
        optimizer.zero_grad(set_to_none=True)
        if working is not aligner:
            with torch.no_grad():
                torch._foreach_copy_(used, own)
    assert torch.isfinite(loss.detach())
    return tokens


class _Pairs:
    """Pairs of token sequences with the concept of each, drawn without replacement until all were drawn."""

    def __init__(self, data: RunData, tokenizer: Tokenizer, mentions: Mentions | None, seed: int) -> None:
        graph, table = data.graph, data.shards.names
        self._random = np.random.default_rng(seed)
        self._offsets = graph.name_offsets.astype(np.int64)
        vocabulary = Vocabulary.from_index(data.shards.index["tokenizer"])
        self._frame = vocabulary.cls_id, vocabulary.sep_id
        counts = np.diff(self._offsets)
        names = name_tokens(np.arange(graph.num_names), table, vocabulary.mask_id)
        owner = np.repeat(np.arange(graph.num_concepts), counts)
        second = np.flatnonzero(within(counts) > 0)
        concepts = owner[second]
        sequences = [names]
        if mentions is not None:
            linked = sorted({(text.lower(), cui) for text, cuis in zip(mentions.mentions, mentions.gold, strict=True)
                             for cui in cuis})  # fmt: skip
            of_mention = graph.lookup([cui for _, cui in linked]).astype(np.int64)
            known = (of_mention >= 0) & (counts[of_mention] > 0)
            ids = tokenizer.encode_ids([text for (text, _), kept in zip(linked, known, strict=True) if kept])
            longest = data.shards.index["max_name_tokens"]
            ids = [each[:longest] for each in ids]
            lengths = np.array([len(each) for each in ids], np.int64)
            sequences.append(TokenSequences(np.concatenate([np.array(each, np.int64) for each in ids]), lengths))
            second = np.concatenate([second, graph.num_names + np.arange(len(ids))])
            concepts = np.concatenate([concepts, of_mention[known]])
        self._sequences = TokenSequences.join(sequences)
        self._begins = starts(self._sequences.lengths)
        self._second, self._concepts = second, concepts
        self._order = self._random.permutation(second.size)

    def draw(self, count: int) -> tuple[TokenSequences, TokenSequences, np.ndarray]:
        """Return two sequences of each of some pairs, with special tokens, and the concepts."""
        while self._order.size < count:
            self._order = np.concatenate([self._order, self._random.permutation(self._second.size)])
        chosen, self._order = self._order[:count], self._order[count:]
        second, concepts = self._second[chosen], self._concepts[chosen]
        begins, ends = self._offsets[concepts], self._offsets[concepts + 1]
        own = (second >= begins) & (second < ends)
        first = begins + (self._random.random(count) * (ends - begins - own)).astype(np.int64)
        first += own & (first >= second)
        return self._taken(first), self._taken(second), concepts

    def _taken(self, rows: np.ndarray) -> TokenSequences:
        lengths = self._sequences.lengths[rows]
        tokens = self._sequences.tokens[ranges(self._begins[rows], lengths)]
        return TokenSequences(tokens, lengths).framed(*self._frame)
