"""The model that a recipe describes."""

import torch
from torch import nn

from bali_ds.config import Recipe
from bali_ds.model.adaptation import adapt
from bali_ds.model.aligner import Aligner
from bali_ds.model.dual import Dual
from bali_ds.model.graph import build_graph_encoder
from bali_ds.model.names import NameTable
from bali_ds.model.text import TextEncoder, load_text_encoder
from bali_ds.objective.graph_infomax import GraphInfomax
from bali_ds.objective.link_prediction import LinkPrediction
from bali_ds.stream.mixture import Mixture


def build_aligner(recipe: Recipe, num_relations: int, shards: Mixture | None = None) -> Aligner:
    """Return the model that a recipe describes, its fresh parts drawn from the recipe's seed.

    Args:
        recipe: the run.
        num_relations: relation ids of the graph, both directions together.
        shards: hold the tokens of all names and know how many concepts there are; needed where name vectors are cached
            or concepts have learnt embeddings.

    Raises:
        InputError: the encoder cannot be loaded, or the recipe asks for what it cannot give.
    """
    encoder = recipe.text_encoder
    text = load_text_encoder(
        encoder.path, seed=recipe.seed, dropout=encoder.dropout, layer=encoder.layer, attention=encoder.attention
    )
    torch.manual_seed(recipe.seed)
    num_concepts = int(shards.index["graph"]["concepts"]) if shards else 0
    graph = build_graph_encoder(recipe.graph_encoder, text.width, num_relations, num_concepts)
    objectives = _objectives(recipe, text, num_relations)
    adapt(text, encoder)
    return Aligner(
        text,
        graph,
        recipe.objective,
        pooling=encoder.pooling,
        names=recipe.graph_encoder.names,
        table=_table(recipe, text.width, shards) if shards and recipe.graph_encoder.names == "cached" else None,
        objectives=objectives,
    )


def _objectives(recipe: Recipe, text: TextEncoder, num_relations: int) -> dict[str, nn.Module]:
    """The objectives that have weights of their own."""
    objective, found = recipe.objective, dict[str, nn.Module]()
    if objective.link_prediction.weight:
        found["link_prediction"] = LinkPrediction(objective.link_prediction.kind, text.width, num_relations)
    if objective.graph_infomax.weight:
        found["graph_infomax"] = GraphInfomax(text.width)
    if objective.dual.weight:
        longest = max(int(text.encoder.config.max_position_embeddings), recipe.graph_encoder.tokens)
        found["dual"] = Dual(objective.dual, text, longest)
    return found


def _table(recipe: Recipe, width: int, shards: Mixture) -> NameTable:
    tokenizer = shards.index["tokenizer"]
    return NameTable(
        shards.names,
        width,
        refresh_every=recipe.graph_encoder.refresh_every,
        special=tuple(int(tokenizer[name]) for name in ("cls_id", "sep_id", "pad_id", "mask_id")),  # type: ignore[arg-type]
        longest=int(shards.index["max_name_tokens"]),
    )
