"""The opened inputs of a run: graph and shards, which match each other and the encoder."""

from dataclasses import dataclass
from pathlib import Path

from bali_ds.config import Recipe
from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.data.loader import Loader
from bali_ds.data.mixture import Mixture, open_mixture
from bali_ds.data.sampler import Position
from bali_ds.errors import InputError
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.model.pretrained import check_weight_files, shapes_of_encoder
from bali_ds.model.text_encoder import positions_of
from bali_ds.model.tokenizer_checks import matching_tokenizer
from bali_ds.objectives.registry import stream_settings
from bali_ds.parsing import quoted


@dataclass(frozen=True)
class RunData:
    """The opened inputs of a run."""

    graph: KnowledgeGraph
    shards: Mixture

    @classmethod
    def open(cls, recipe: Recipe) -> "RunData":
        """Open graph and shards and check that they match each other and the encoder.

        Raises:
            InputError: something is missing or damaged, or does not match.
        """
        graph = KnowledgeGraph.open(recipe.data.graph)
        shards = open_mixture(recipe.data.shards)
        for each in shards.sets:
            each.check_graph(graph)
        settings = recipe.text_encoder
        if settings.weights == "pretrained":
            check_weight_files(settings.path)
        encoder = shapes_of_encoder(settings.path)
        tokenizer = matching_tokenizer(settings.path, encoder)
        for each in shards.sets:
            each.check_tokenizer(tokenizer, settings.path)
        prompt = _prompt_tokens(recipe, tokenizer)
        _check_lengths(recipe, shards, positions_of(encoder) - prompt)
        return cls(graph, shards)

    def loader(
        self,
        recipe: Recipe,
        rank: int,
        world_size: int,
        start: Position | None = None,
        *,
        workers: int | None = None,
        pin_memory: bool = False,
        quarantine: Path | None = None,
    ) -> Loader:
        """Return the training samples of one rank from a position on; see `Loader`.

        Args:
            recipe: the run.
            rank: whose samples.
            world_size: number of ranks.
            start: position of the first sample; None for the begin.
            workers: processes that load; None takes the recipe's.
            pin_memory: whether batches are in page-locked memory.
            quarantine: file that bad samples are recorded in.
        """
        return Loader(
            self.shards,
            self.graph,
            stream_settings(recipe),
            global_batch=recipe.batch.passages,
            micro_batches=recipe.batch.micro_batches,
            rank=rank,
            world_size=world_size,
            workers=recipe.data.workers if workers is None else workers,
            start=start,
            pin_memory=pin_memory,
            quarantine=quarantine,
        )


def _prompt_tokens(recipe: Recipe, tokenizer: Tokenizer) -> int:
    """Return how many tokens the prompt adds to a passage."""
    prompt = recipe.text_encoder.query_prompt
    if prompt is None:
        return 0
    if recipe.text_encoder.pooling != "last" and not tokenizer.separates(prompt):
        raise InputError(
            f"text_encoder.query_prompt: {quoted(prompt)} shares a token with the word after it, so that means cannot "
            "leave the prompt out; end it with a line break, or set text_encoder.pooling to last"
        )
    return len(tokenizer.prompt_ids(prompt))


def _check_lengths(recipe: Recipe, shards: Mixture, positions: int) -> None:
    markers, prompted = recipe.text_encoder.markers is not None, recipe.text_encoder.query_prompt is not None
    for each in shards.sets:
        longest = each.index["max_tokens"]
        if markers and 3 * longest > positions:  # two markers a token, at worst
            longest = int((each.samples["tokens"] + 2 * each.samples["mentions"]).max(initial=0))
        if longest > positions:
            raise InputError(
                f"{each.path}: has passages of up to {longest:,} tokens{', markers included' * markers}, and "
                f"{recipe.text_encoder.path} reads {positions:,}{' after the prompt' * prompted}; build the shards "
                "with a smaller --max-tokens"
            )
