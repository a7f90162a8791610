"""Options of commands that link with mentions in context, graph views, remembered mentions and spelling."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bali_ds.cli.common import only_with, share
from bali_ds.errors import InputError

if TYPE_CHECKING:
    from bali_ds.inference.concept_dictionary import ConceptDictionary
    from bali_ds.inference.concept_scorer import Scoring
    from bali_ds.inference.context_linker import ContextLinker

# What was chosen most often for the recipe in docs/results.md.
CONTEXT_SHARE, GRAPH_SHARE, MEMORY_BONUS = 0.3, 0.1, 0.0


def add_scoring(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command that links mentions."""
    group = parser.add_argument_group("what mentions are compared with, beside the names")
    group.add_argument(
        "--in-context", action="store_true", help="also read each mention within its text (for mentions of a corpus)"
    )
    group.add_argument(
        "--context-share", type=share, metavar="S",
        help=f"share of the mention read in its text; 1 is that alone (default: {CONTEXT_SHARE})",
    )  # fmt: skip
    group.add_argument(
        "--with-graph", type=Path, metavar="GRAPH", help="compare with graph views, too; GRAPH is that of the training"
    )
    group.add_argument(
        "--graph-share", type=share, metavar="S",
        help=f"share of the graph view in a concept's score (default: {GRAPH_SHARE})",
    )  # fmt: skip
    group.add_argument(
        "--memory", metavar="CORPUS",
        help="compare with the linked mentions of a corpus, too, as FORMAT:PATH: these are labels",
    )  # fmt: skip
    group.add_argument(
        "--memory-bonus", type=float, metavar="B",
        help=f"bonus of a mention of the corpus, as a cosine (default: {MEMORY_BONUS:g})",
    )  # fmt: skip
    group.add_argument(
        "--spelling", type=float, default=0.0, metavar="W",
        help="weight of the cosine of character n-grams, for example 0.3 (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--graph-index", type=Path, metavar="DIR", help="directory that caches the graph views, memory-mapped"
    )


def scoring_of(options: argparse.Namespace) -> "Scoring":
    """Return the weights that the options ask for.

    Raises:
        InputError: a weight is given of something that mentions are not compared with.
    """
    from bali_ds.inference.concept_scorer import Scoring

    only_with(options, "in_context", "context_share")
    only_with(options, "with_graph", "graph_share", "graph_index")
    only_with(options, "memory", "memory_bonus")

    def weight(given: float | None, default: float) -> float:
        return default if given is None else given

    return Scoring(
        context=weight(options.context_share, CONTEXT_SHARE) if options.in_context else 0.0,
        graph=weight(options.graph_share, GRAPH_SHARE) if options.with_graph else 0.0,
        memory=weight(options.memory_bonus, MEMORY_BONUS) if options.memory else None,
        spelling=options.spelling,
    )


def weights_as_options(scoring: "Scoring", options: argparse.Namespace) -> str:
    """Return the options with which the other options give these weights, also those that are 0.

    Without a weight of the memory, `--memory` is to be left out.
    """
    parts = []
    if options.in_context:
        parts.append(f"--context-share {scoring.context:g}")
    if options.with_graph:
        parts.append(f"--graph-share {scoring.graph:g}")
    if scoring.memory is not None:
        parts.append(f"--memory-bonus {scoring.memory:g}")
    parts.append(f"--spelling {scoring.spelling:g}")
    chosen = " ".join(parts)
    if options.memory and scoring.memory is None:
        return f"{chosen}, without --memory"
    return chosen


def open_linker(model: Path, dictionary: "ConceptDictionary", options: argparse.Namespace) -> "ContextLinker":
    """Return the linker that the options describe.

    Raises:
        InputError: the model, the graph or the corpus cannot be used.
    """
    from bali_ds.evaluation.linking_data import read_queries
    from bali_ds.evaluation.scoring_choice import parts_to_choose
    from bali_ds.graph.knowledge_graph import KnowledgeGraph
    from bali_ds.inference.context_linker import ContextLinker

    scoring, memory = scoring_of(options), None
    if getattr(options, "choose_on", None):
        scoring = parts_to_choose(scoring)
    if options.memory:
        queries = read_queries(options.memory)
        if options.in_context and not queries.places:
            raise InputError(f"--memory {options.memory}: has no texts; with --in-context it must be a corpus")
        memory = queries.mentions, queries.gold, queries.places
    return ContextLinker(
        model,
        dictionary,
        scoring,
        graph=KnowledgeGraph.open(options.with_graph) if options.with_graph else None,
        memory=memory,
        index=options.graph_index,
        device=options.device,
        progress=True,
    )
