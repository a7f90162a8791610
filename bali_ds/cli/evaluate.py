"""Commands that evaluate a model: `evaluate linking`, `retrieval`, `qa`, `context` and `multi-hop`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from bali_ds.cli.common import add_device, add_json, emit, interval, note, results_alone_on_stdout, seed
from bali_ds.cli.scoring import add_scoring, open_linker, scoring_of, weights_as_options
from bali_ds.errors import InputError

HOPS = (1, 2, 3)
TOKEN_BUDGETS = (32, 64, 128, 256, 512)


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this group's commands to the program."""
    evaluate = commands.add_parser("evaluate", help="evaluate a model", description="Evaluate a model.")
    tasks = evaluate.add_subparsers(metavar="TASK", required=True)
    _add_linking(tasks)
    _add_retrieval(tasks)
    _add_questions(tasks)
    _add_context(tasks)
    _add_multi_hop(tasks)


def _add_common(task: argparse.ArgumentParser) -> None:
    task.add_argument("--seed", type=seed, default=0, metavar="N", help="random seed (default: %(default)s)")
    add_device(task)
    add_json(task)


def _add_linking(tasks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    linking = tasks.add_parser(
        "linking",
        help="zero-shot entity linking: Acc@1, Acc@5, Acc@20 and MRR by subset",
        description="Link each mention to the concept with the most similar name in a dictionary, without fine-tuning. "
        "Intervals are 95 % bootstrap intervals over the mentions, or over the documents of a corpus. With the options "
        "below, mentions are also compared with more than names.",
    )
    linking.add_argument("--model", type=Path, required=True, metavar="DIR", help="exported or Hugging Face encoder")
    linking.add_argument(
        "--dictionary", type=Path, required=True, metavar="FILE",
        help="plain or gzip file of CUI||name lines, or a graph directory",
    )  # fmt: skip
    linking.add_argument(
        "--queries", required=True, metavar="FILE",
        help="TSV file with columns mention and cui, BioSyn .concept files, or a corpus as FORMAT:PATH, for example "
        "pubtator:FILE",
    )  # fmt: skip
    linking.add_argument(
        "--pooling", choices=("mean_tokens", "mean", "cls"), help="pooling of token states (default: the model's own)"
    )
    linking.add_argument("--against", type=Path, metavar="DIR", help="compare with this model by a paired bootstrap")
    add_scoring(linking)
    linking.add_argument(
        "--choose-on", metavar="FILE",
        help="tune the weights on the linked mentions of this file, which must not be those of --queries: context, "
        "graph and memory where they are used, and spelling; the highest Acc@1 wins and replaces given weights",
    )  # fmt: skip
    _add_common(linking)
    linking.set_defaults(run=_run_linking)


def _run_linking(options: argparse.Namespace) -> None:
    from bali_ds.evaluation.concept_ranking import rank_by_scores
    from bali_ds.evaluation.gold_coverage import gold_coverage
    from bali_ds.evaluation.linking import biosyn_ranks, compare_linking, rank_queries, summarize, summary
    from bali_ds.evaluation.linking_data import read_queries
    from bali_ds.evaluation.scoring_choice import choose_scoring
    from bali_ds.inference.concept_dictionary import read_dictionary
    from bali_ds.inference.concept_scorer import Scoring
    from bali_ds.inference.encoder import load

    by_names_alone = scoring_of(options) == Scoring() and not options.choose_on
    note("reading dictionary and mentions")
    dictionary = read_dictionary(options.dictionary)
    queries = read_queries(options.queries)
    others = read_queries(options.choose_on) if options.choose_on else None
    coverage = gold_coverage(dictionary, queries)
    for name, each in (("--queries", queries), ("--choose-on", others)):
        if options.in_context and each and not each.places:
            raise InputError(
                f"--in-context: the mentions of {name} have no texts; pass a corpus, such as pubtator:FILE"
            )
    if options.pooling and not by_names_alone:
        raise InputError("--pooling: only for mentions compared with names alone; leave it out")

    def ranks(path: Path) -> Any:
        if not by_names_alone:
            linker = open_linker(path, dictionary, options)
            if others:
                linker.scoring, accuracy = choose_scoring(linker, others)
                weights = weights_as_options(linker.scoring, options)
                print(f"{path}: {weights}: Acc@1 {accuracy:.1%} on {options.choose_on}", file=sys.stderr)
            return rank_by_scores(linker, queries), None
        encoder = load(path, device=options.device)
        encoder.pooling = options.pooling or encoder.pooling
        names = encoder.encode(list(dictionary.names), progress=True)
        own = rank_queries(encoder, dictionary, queries, names=names, progress=True)
        return own, biosyn_ranks(encoder, dictionary, queries, names) if queries.parts else None

    own, biosyn = ranks(options.model)
    result = summarize(own, dictionary, queries, seed=options.seed)
    if options.against:
        other, _ = ranks(options.against)
        for subset, measures in compare_linking(other, own, dictionary, queries, options.seed).items():
            result[subset]["difference"] = measures
    if biosyn is not None:
        result["biosyn_protocol"] = summary(biosyn, options.seed)
    result["all"]["gold"] = coverage
    emit(result, options.json, _linking_table)


def _linking_table(result: dict[str, Any]) -> str:
    measures = ("acc@1", "acc@5", "acc@20", "mrr")
    lines = [f"{'subset':<20}{'n':>8}" + "".join(f"{measure:>24}" for measure in measures)]
    for subset, values in result.items():
        lines.append(f"{subset:<20}{values['n']:>8,}" + "".join(interval(values[measure]) for measure in measures))
        if "difference" in values:
            changes = (values["difference"][measure] for measure in measures)
            lines.append(f"{'  difference':<28}" + "".join(interval(change, sign="+") for change in changes))
    gold = result["all"]["gold"]
    lines.append(f"{gold['mentions_without_gold']:,} mentions have no gold concept in the dictionary; it lacks:")
    for name, counts in gold["vocabularies"].items():
        lines.append(f"  {name:<18}{counts['missing']:>8,} of {counts['concepts']:,} gold concepts")
    return "\n".join(lines)


def _add_retrieval(tasks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    retrieval = tasks.add_parser(
        "retrieval",
        help="text-graph retrieval on held-out passages: R@1, R@5, R@10 and MRR",
        description="Retrieve the graph view of a concept by its text view among the views of all held-out passages, "
        "and the reverse.",
    )
    retrieval.add_argument("--model", type=Path, required=True, metavar="DIR", help="exported model directory")
    retrieval.add_argument("--graph", type=Path, required=True, metavar="GRAPH", help="graph directory")
    retrieval.add_argument("--shards", type=Path, required=True, metavar="SHARDS", help="shard directory")
    retrieval.add_argument(
        "--split", choices=("validation", "train"), default="validation", help="split (default: %(default)s)"
    )
    retrieval.add_argument("--passages", type=int, metavar="N", help="use the first N passages (default: all)")
    _add_common(retrieval)
    retrieval.set_defaults(run=_run_retrieval)


def _run_retrieval(options: argparse.Namespace) -> None:
    from bali_ds.evaluation.retrieval import evaluate_retrieval
    from bali_ds.graph.knowledge_graph import KnowledgeGraph
    from bali_ds.inference.aligned_model import held_out_views, load_aligned
    from bali_ds.shards.shard_set import ShardSet

    graph, shards = KnowledgeGraph.open(options.graph), ShardSet.open(options.shards)
    aligner, recipe = load_aligned(options.model, options.device, graph)
    views = held_out_views(aligner, recipe, graph, shards, split=options.split, passages=options.passages)
    result = evaluate_retrieval(*views, seed=options.seed)
    emit(result, options.json, _retrieval_table)


def _retrieval_table(result: dict[str, Any]) -> str:
    measures = ("r@1", "r@5", "r@10", "mrr")
    lines = [f"{'direction':<20}{'n':>8}" + "".join(f"{measure:>24}" for measure in measures)]
    for key in ("text_to_graph", "graph_to_text"):
        cells = "".join(interval(result[key][measure]) for measure in measures)
        lines.append(f"{key.replace('_', ' '):<20}{result['n']:>8,}{cells}")
    uniformity = ", ".join(f"{view} {value:.3f}" for view, value in result["uniformity"].items())
    lines.append(f"alignment {result['alignment']:.3f}; uniformity: {uniformity}")
    return "\n".join(lines)


def _add_questions(tasks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    questions = tasks.add_parser(
        "qa",
        help="accuracy after fine-tuning on PubMedQA, BioASQ, MedQA, MedMCQA or BLURB",
        description="Fine-tune the encoder with the Hugging Face Trainer and print the mean accuracy and its standard "
        "deviation over rounds. Download the data yourself: pubmedqa github.com/pubmedqa/pubmedqa; bioasq "
        "participants-area.bioasq.org; medqa github.com/jind11/MedQA; medmcqa github.com/medmcqa/medmcqa; blurb "
        "github.com/michiyasunaga/LinkBERT.",
    )
    questions.add_argument("--model", type=Path, required=True, metavar="DIR", help="exported or Hugging Face encoder")
    questions.add_argument(
        "--task", required=True, choices=("pubmedqa", "bioasq", "medqa", "medmcqa", "blurb"), help="data set"
    )
    questions.add_argument(
        "--data", type=Path, required=True, metavar="PATH", help="official directory, or one file for cross-validation"
    )
    questions.add_argument(
        "--folds", type=int, default=10, metavar="N", help="folds of cross-validation (default: %(default)s)"
    )
    questions.add_argument("--no-snippets", action="store_true", help="BioASQ: questions without snippets")
    for option, kind, default, text in (
        ("--epochs", int, 50, "maximum epochs; training stops early without improvement"),
        ("--learning-rate", float, 1e-5, "learning rate"),
        ("--batch", int, 16, "batch size"),
        ("--max-tokens", int, 512, "maximum tokens of an input"),
        ("--seed", seed, 42, "random seed"),
    ):
        metavar = "RATE" if kind is float else "N"
        questions.add_argument(
            option, type=kind, default=default, metavar=metavar, help=f"{text} (default: %(default)s)"
        )
    add_json(questions)
    questions.set_defaults(run=_run_questions)


def _run_questions(options: argparse.Namespace) -> None:
    from bali_ds.evaluation.question_data import read_splits
    from bali_ds.evaluation.questions import FineTuning, evaluate_questions
    from bali_ds.inference.exported_directory import check_directory

    check_directory(options.model)
    splits = read_splits(options.task, options.data, folds=options.folds, snippets=not options.no_snippets)
    tuning = FineTuning(
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        batch=options.batch,
        max_tokens=options.max_tokens,
        seed=options.seed,
    )
    with results_alone_on_stdout():  # the Trainer imports DeepSpeed
        result = evaluate_questions(options.model, splits, tuning)
    accuracy = result["accuracy"]
    emit(
        result,
        options.json,
        lambda _: (
            f"{options.task}: accuracy {100 * accuracy['mean']:.1f} ± {100 * accuracy['sd']:.1f} over "
            f"{result['rounds']} rounds, {result['n']:,} questions; majority class {100 * result['majority']:.1f}"
        ),
    )


def _add_graph_options(task: argparse.ArgumentParser) -> None:
    task.add_argument(
        "--model", type=Path, required=True, action="append", metavar="DIR",
        help="exported or Hugging Face encoder; repeat it to compare several",
    )  # fmt: skip
    task.add_argument("--graph", type=Path, required=True, metavar="GRAPH", help="graph with all facts")


def _add_context(tasks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    context = tasks.add_parser(
        "context",
        help="recall of the triples that answer a question, by tokens of context",
        description="Ask paraphrased questions about facts of the graph and print the recall of the supporting triples "
        "in the retrieved context at each token budget, with unpruned context as the baseline.",
    )
    _add_graph_options(context)
    context.add_argument(
        "--questions", type=int, default=300, metavar="N", help="number of questions (default: %(default)s)"
    )
    _add_common(context)
    context.set_defaults(run=_run_context)


def _run_context(options: argparse.Namespace) -> None:
    from bali_ds.corpus.name_index import open_dictionary
    from bali_ds.evaluation.context_recall import evaluate_context
    from bali_ds.evaluation.graph_questions import QuestionMaker
    from bali_ds.graph.knowledge_graph import KnowledgeGraph
    from bali_ds.inference.context import ContextFinder, name_index_path
    from bali_ds.inference.encoder import load

    graph = KnowledgeGraph.open(options.graph)
    names = open_dictionary(name_index_path(options.graph), graph)
    finders = {str(path): ContextFinder(load(path, device=options.device), graph, names) for path in options.model}
    questions = QuestionMaker(graph, options.seed).questions(1, options.questions, held_out=False, most_answers=8)
    if not questions:
        raise InputError(f"{options.graph}: has no facts to ask about")
    result = evaluate_context(finders, questions, TOKEN_BUDGETS, options.seed)
    emit(result, options.json, _context_table)


def _context_table(result: dict[str, Any]) -> str:
    lines = [f"recall of supporting triples (tokens spent), {result['n']} questions"]
    lines.append(f"{'tokens':<40}" + "".join(f"{budget:>16}" for budget in TOKEN_BUDGETS))
    for name, budgets in result["systems"].items():
        cells = (f"{100 * row['recall']['value']:.1f} % ({row['tokens']:.0f})" for row in budgets.values())
        lines.append(f"{name[-38:]:<40}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def _add_multi_hop(tasks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    hops = tasks.add_parser(
        "multi-hop",
        help="questions over one, two and three relations: Hits@1, Hits@10 and MRR",
        description="Train a small head on questions about known facts and test it on questions about held-out facts. "
        "The training graph must have been built with `graph build --hold-out FILE`. A FILE that does not exist is "
        "written, with a sample of 5 % of the graph's concept pairs.",
    )
    _add_graph_options(hops)
    hops.add_argument(
        "--held-out", type=Path, required=True, metavar="FILE", help="table with columns head_cui and tail_cui"
    )
    hops.add_argument(
        "--questions",
        type=int,
        default=500,
        metavar="N",
        help="test questions per number of hops (default: %(default)s)",
    )
    _add_common(hops)
    hops.set_defaults(run=_run_multi_hop)


def _run_multi_hop(options: argparse.Namespace) -> None:
    from bali_ds.evaluation.graph_questions import QuestionMaker, held_out_entries, sample_held_out
    from bali_ds.evaluation.multi_hop import MultiHopTraining, evaluate_multi_hop
    from bali_ds.graph.knowledge_graph import KnowledgeGraph
    from bali_ds.inference.encoder import load

    graph = KnowledgeGraph.open(options.graph)
    if not options.held_out.exists():
        sample_held_out(graph, options.held_out, fraction=0.05, seed=options.seed)
    maker = QuestionMaker(graph, options.seed, held_out_entries(graph, options.held_out))

    def questions(count: int, *, held_out: bool) -> list[Any]:
        return [each for hops in HOPS for each in maker.questions(hops, count, held_out=held_out, most_answers=100)]

    known, asked = questions(8 * options.questions, held_out=False), questions(options.questions, held_out=True)
    if not known or not asked:
        counts = f"{len(known)} training and {len(asked)} test questions"
        raise InputError(f"{options.held_out}: gives {counts}; hold out other facts")
    encoders = {str(path): load(path, device=options.device) for path in options.model}
    result = evaluate_multi_hop(encoders, maker, known, asked, MultiHopTraining(seed=options.seed))
    emit(result, options.json, _hops_table)


def _hops_table(result: dict[str, Any]) -> str:
    measures = ("hits@1", "hits@10", "mrr")
    lines = [f"{'hops':<6}{'system':<40}" + "".join(f"{measure:>24}" for measure in measures)]
    for hops, values in result.items():
        for name, row in values["systems"].items():
            lines.append(f"{hops:<6}{name[-38:]:<40}" + "".join(interval(row[each]) for each in measures))
        lines.append(f"      {values['n']:,} questions")
    return "\n".join(lines)
