"""Commands that build, inspect and fetch concept graphs."""

import argparse
from pathlib import Path
from typing import Any

from bali_ds.cli.common import emit
from bali_ds.errors import InputError


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this group's commands to the program."""
    graph = commands.add_parser("graph", help="build and inspect concept graphs")
    actions = graph.add_subparsers(metavar="ACTION", required=True)
    _add_build(actions)
    stats = actions.add_parser("stats", help="counts, degrees, relations and sources of a graph")
    stats.add_argument("graph", type=Path, metavar="GRAPH")
    stats.add_argument("--json", action="store_true", help="print one JSON document")
    stats.set_defaults(run=_stats)
    show = actions.add_parser("show", help="one concept and its neighbourhood")
    show.add_argument("graph", type=Path, metavar="GRAPH")
    show.add_argument("cui", metavar="CUI")
    show.add_argument("--limit", type=int, default=10, help="facts to show of each relation (default 10)")
    show.add_argument("--json", action="store_true", help="print one JSON document with all facts")
    show.set_defaults(run=_show)


def _add_build(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    build = actions.add_parser("build", help="merge sources into one graph", description="Sources merge on the CUI.")
    build.add_argument("--out", type=Path, required=True, metavar="GRAPH", help="directory to write")
    build.add_argument("--json", action="store_true", help="print the report as one JSON document")
    sources = build.add_argument_group("sources, each as often as needed")
    sources.add_argument("--rrf", type=Path, action="append", default=[], metavar="DIR", help="RRF files of the UMLS")
    sources.add_argument(
        "--tsv", type=Path, action="append", default=[], nargs=2, metavar=("NODES", "EDGES"), help="node and edge table"
    )
    build.set_defaults(run=_build)


def _build(options: argparse.Namespace) -> None:
    from bali_ds.graph.builder import build_graph
    from bali_ds.graph.rrf import RrfSource
    from bali_ds.graph.source import Source
    from bali_ds.graph.tables import TableSource

    sources: list[Source] = [RrfSource(folder) for folder in options.rrf]
    sources += [TableSource(*paths) for paths in options.tsv]
    if not sources:
        raise InputError("graph build: no source; name one with --rrf or --tsv")
    report = build_graph(sources, options.out)
    emit(report, options.json, lambda: _readable_report(report, options.out))


def _readable_report(report: dict[str, Any], out: Path) -> str:
    lines = []
    for name, counts in report["read"].items():
        lines.append(f"{name}: " + ", ".join(f"{count:,} {what}" for what, count in counts.items()))
    lines += [f"dropped: {count:,} {what}" for what, count in report["dropped"].items() if count]
    lines.append(
        f"{out}: {report['concepts']:,} concepts, {report['names']:,} names, {report['edges']:,} edges, "
        f"{report['relations']:,} relations, fingerprint {report['fingerprint'][:16]}"
    )
    return "\n".join(lines)


def _stats(options: argparse.Namespace) -> None:
    from bali_ds.graph.statistics import graph_statistics
    from bali_ds.graph.store import KnowledgeGraph

    report = graph_statistics(KnowledgeGraph.open(options.graph, verify=True))
    emit(report, options.json, lambda: "\n".join(_readable_statistics(report)))


def _readable_statistics(report: dict[str, Any]) -> list[str]:
    lines = []
    for key, value in report.items():
        if isinstance(value, dict):
            lines.append(key.replace("_", " "))
            width = max((len(name) for name in value), default=0)
            lines += [f"  {name:{width}}  {_number(count)}" for name, count in value.items()]
        else:
            lines.append(f"{key.replace('_', ' '):12}  {_number(value)}")
    return lines


def _number(value: object) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _show(options: argparse.Namespace) -> None:
    from bali_ds.graph.show import describe_concept, readable
    from bali_ds.graph.store import KnowledgeGraph

    description = describe_concept(KnowledgeGraph.open(options.graph), options.cui)
    emit(description, options.json, lambda: readable(description, options.limit))
