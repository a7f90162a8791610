"""Commands that measure a model on questions that a graph answers."""

import argparse
from pathlib import Path
from typing import Any

from bali_ds.cli.common import dictionary_beside, emit, interval
from bali_ds.errors import InputError

HOPS = (1, 2, 3)
BUDGETS = (32, 64, 128, 256, 512)


def add_tasks(tasks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add these tasks to `evaluate`."""
    context = tasks.add_parser(
        "context",
        help="recall of the triples that answer a question, by tokens of context",
        description="Ask paraphrased questions about facts of the graph and count which of the supporting triples the "
        "context holds under each budget of tokens, against no pruning.",
    )
    _add_common(context)
    context.add_argument("--questions", type=int, default=300, metavar="N", help="how many (default 300)")
    context.set_defaults(run=_run_context)
    hops = tasks.add_parser(
        "multi-hop",
        help="questions over one, two and three relations: Hits@1, Hits@10, MRR",
        description="Learn from questions about known facts, ask about held-out ones. FILE is what the training graph "
        "was built with (`graph build --hold-out FILE`); where it does not exist, a twentieth of the graph's pairs is "
        "drawn and written to it.",
    )
    _add_common(hops)
    hops.add_argument("--held-out", type=Path, required=True, metavar="FILE", help="table of head_cui and tail_cui")
    hops.add_argument("--questions", type=int, default=500, metavar="N", help="to ask for each number of hops")
    hops.set_defaults(run=_run_multi_hop)


def _add_common(task: argparse.ArgumentParser) -> None:
    task.add_argument(
        "--model", type=Path, required=True, action="append", metavar="DIR", help="an encoder; several are compared"
    )
    task.add_argument("--graph", type=Path, required=True, metavar="GRAPH", help="the whole graph")
    task.add_argument("--seed", type=int, default=0, help="of questions and bootstrap (default 0)")
    task.add_argument("--device", default="cpu", help="where the model computes (default cpu)")
    task.add_argument("--json", action="store_true", help="print JSON")


def _run_context(options: argparse.Namespace) -> None:
    from bali_ds.corpus.name_index import open_dictionary
    from bali_ds.evaluation.context_recall import evaluate_context
    from bali_ds.evaluation.graph_questions import QuestionMaker
    from bali_ds.graph.knowledge_graph import KnowledgeGraph
    from bali_ds.inference.context import ContextFinder
    from bali_ds.inference.encoder import load

    graph = KnowledgeGraph.open(options.graph)
    names = open_dictionary(dictionary_beside(options.graph), graph)
    finders = {str(path): ContextFinder(load(path, device=options.device), graph, names) for path in options.model}
    questions = QuestionMaker(graph, options.seed).questions(1, options.questions, held_out=False, most_answers=8)
    if not questions:
        raise InputError(f"{options.graph}: has no fact to ask about")
    result = evaluate_context(finders, questions, BUDGETS, options.seed)
    emit(result, options.json, lambda: _context_table(result))


def _context_table(result: dict[str, Any]) -> str:
    lines = [f"recall of supporting triples (tokens spent), {result['n']} questions"]
    lines.append(f"{'tokens':<40}" + "".join(f"{budget:>16}" for budget in BUDGETS))
    for name, budgets in result["systems"].items():
        cells = (f"{100 * row['recall']['value']:.1f} % ({row['tokens']:.0f})" for row in budgets.values())
        lines.append(f"{name[-38:]:<40}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def _run_multi_hop(options: argparse.Namespace) -> None:
    from bali_ds.evaluation.graph_questions import QuestionMaker
    from bali_ds.evaluation.held_out_facts import draw_held_out, held_out_entries
    from bali_ds.evaluation.multi_hop import Budget, evaluate_multi_hop
    from bali_ds.graph.knowledge_graph import KnowledgeGraph
    from bali_ds.inference.encoder import load

    graph = KnowledgeGraph.open(options.graph)
    if not options.held_out.exists():
        draw_held_out(graph, options.held_out, share=0.05, seed=options.seed)
    maker = QuestionMaker(graph, options.seed, held_out_entries(graph, options.held_out))

    def questions(count: int, *, held_out: bool) -> list[Any]:
        return [each for hops in HOPS for each in maker.questions(hops, count, held_out=held_out, most_answers=100)]

    known, asked = questions(8 * options.questions, held_out=False), questions(options.questions, held_out=True)
    if not known or not asked:
        raise InputError(f"{options.held_out}: leaves {len(known)} questions to learn from and {len(asked)} to ask")
    encoders = {str(path): load(path, device=options.device) for path in options.model}
    result = evaluate_multi_hop(encoders, maker, known, asked, Budget(seed=options.seed))
    emit(result, options.json, lambda: _hops_table(result))


def _hops_table(result: dict[str, Any]) -> str:
    measures = ("hits@1", "hits@10", "mrr")
    lines = [f"{'hops':<6}{'system':<40}" + "".join(f"{measure:>24}" for measure in measures)]
    for hops, values in result.items():
        for name, row in values["systems"].items():
            lines.append(f"{hops:<6}{name[-38:]:<40}" + "".join(interval(row[each]) for each in measures))
        lines.append(f"      {values['n']:,} questions")
    return "\n".join(lines)
