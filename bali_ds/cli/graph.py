"""Commands for concept graphs: `graph build`, `stats`, `show`, `search`, `names`, `export` and `fetch`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bali_ds.cli.common import add_json, add_overwrite, emit
from bali_ds.errors import InputError, suggestion

if TYPE_CHECKING:
    from bali_ds.graph.source import Source


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this group's commands to the program."""
    graph = commands.add_parser("graph", help="build, inspect and download concept graphs")
    actions = graph.add_subparsers(metavar="COMMAND", required=True)
    _add_build(actions)
    stats = actions.add_parser("stats", help="print counts, degrees, components, relations and sources of a graph")
    stats.add_argument("graph", type=Path, metavar="GRAPH", help="graph directory")
    stats.add_argument(
        "--corpus", nargs="+", default=[], metavar="FORMAT:PATH",
        help="also print how many mentions of these documents are in the graph",
    )  # fmt: skip
    add_json(stats)
    stats.set_defaults(run=_stats)
    show = actions.add_parser("show", help="print a concept and its neighborhood")
    show.add_argument("graph", type=Path, metavar="GRAPH", help="graph directory")
    show.add_argument("cui", metavar="CUI", help="concept identifier, or a code with its prefix (MESH:D003920)")
    show.add_argument(
        "--limit", type=int, default=10, metavar="N", help="facts to print per relation (default: %(default)s)"
    )
    show.add_argument("--png", type=Path, metavar="FILE", help="also draw the neighborhood as an image")
    add_json(show, "all facts")
    show.set_defaults(run=_show)
    search = actions.add_parser("search", help="find concepts by a part of a name")
    search.add_argument("graph", type=Path, metavar="GRAPH", help="graph directory")
    search.add_argument("text", metavar="TEXT", help="what the name contains, for example 'heart attack'")
    search.add_argument("--limit", type=int, default=10, metavar="N", help="concepts to print (default: %(default)s)")
    add_json(search)
    search.set_defaults(run=_search)
    names = actions.add_parser("names", help="print all names as a dictionary, CUI||name")
    names.add_argument("graph", type=Path, metavar="GRAPH", help="graph directory")
    names.set_defaults(run=_names)
    export = actions.add_parser("export", help="write a graph for other tools")
    export.add_argument("graph", type=Path, metavar="GRAPH", help="graph directory")
    export.add_argument(
        "--format", choices=("scispacy", "pykeen", "neo4j", "kgx"), required=True, help="the tool that reads the files"
    )
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the files")
    export.add_argument("--overwrite", action="store_true", help="replace files of these names that are there already")
    export.set_defaults(run=_export)
    fetch = actions.add_parser("fetch", help="download an open graph from its official URL")
    fetch.add_argument("name", metavar="NAME", help="hpo, mondo, doid, go, cl, uberon, chebi, mesh, primekg, or a URL")
    fetch.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write")
    fetch.add_argument("--sha256", metavar="HEX", help="expected SHA-256 of the file")
    fetch.set_defaults(run=_fetch)


def _add_build(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    build = actions.add_parser(
        "build",
        help="build a graph from one or more sources",
        description="Build a graph from one or more sources, whose concepts are merged by CUI.",
    )
    build.add_argument("--out", type=Path, required=True, metavar="GRAPH", help="graph directory to write")
    add_overwrite(build)
    add_json(build, "the report")
    sources = build.add_argument_group("sources, each may be repeated")
    many: dict[str, Any] = {"action": "append", "default": []}
    sources.add_argument("--rrf", type=Path, metavar="DIR", help="directory of UMLS RRF files", **many)
    sources.add_argument("--obo", type=Path, nargs="+", metavar="FILE", help="OBO files, or OBO graphs as JSON", **many)
    sources.add_argument("--mesh", type=Path, metavar="FILE", help="MeSH descriptors as XML", **many)
    sources.add_argument(
        "--tsv",
        type=Path,
        nargs=2,
        metavar=("NODES", "EDGES"),
        help="tables of nodes and edges: .parquet, .csv, or tab-separated",
        **many,
    )
    sources.add_argument(
        "--edges", type=Path, metavar="FILE", help="table of edges that includes the names of the nodes", **many
    )
    rrf = build.add_argument_group("filters for RRF files")
    rrf.add_argument(
        "--language", nargs="+", default=["ENG"], metavar="LAT", help="languages, preferred first (default: ENG)"
    )
    rrf.add_argument("--source", nargs="+", default=[], metavar="SAB", help="vocabularies (default: all)")
    rrf.add_argument("--term-type", nargs="+", default=[], metavar="TTY", help="term types (default: all)")
    rrf.add_argument(
        "--license",
        "--licence",
        type=int,
        default=9,
        metavar="SRL",
        help="highest source restriction level, 0 to 9 (default: %(default)s)",
    )
    rrf.add_argument("--suppressed", action="store_true", help="keep suppressed names and relations")
    rrf.add_argument(
        "--raw-relations",
        action="store_true",
        help="keep qualifiers and siblings, and REL codes (CHD) instead of words (child_of)",
    )
    facts = build.add_argument_group("facts of all sources")
    for option, text in (("--keep-relation", "store only facts of these relations"),
                         ("--drop-relation", "do not store facts of these relations")):  # fmt: skip
        facts.add_argument(option, nargs="+", action="extend", default=[], metavar="NAME", help=text)
    facts.add_argument("--names-only", action="store_true", help="accept a graph without facts")
    facts.add_argument(
        "--hold-out",
        type=Path,
        metavar="FILE",
        help="table with columns head_cui and tail_cui; facts between these pairs are dropped",
    )
    other = build.add_argument_group("ontologies and tables")
    other.add_argument(
        "--xref",
        default="UMLS",
        metavar="PREFIX",
        help="prefix of the cross-reference that is used as CUI of an OBO term (default: %(default)s)",
    )
    other.add_argument(
        "--column",
        nargs="+",
        default=[],
        metavar="NAME=COLUMN",
        help="column names of the tables, for example head_cui=x_id",
    )
    other.add_argument(
        "--prefix-column",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="columns of the vocabulary in which identifiers are unique: of nodes, of heads and tails, or of all three",
    )
    other.add_argument("--tsv-preset", metavar="NAME", help="read the tables of biokg, hetionet, primekg or spoke")
    build.set_defaults(run=_build)


def _build(options: argparse.Namespace) -> None:
    from bali_ds.graph.builder import FactFilter, build_graph

    facts = FactFilter(
        tuple(options.keep_relation), tuple(options.drop_relation), options.hold_out, not options.names_only
    )
    report = build_graph(_sources(options), options.out, facts, overwrite=options.overwrite)
    emit(report, options.json, lambda shown: build_text(shown, options.out))


def _sources(options: argparse.Namespace) -> "list[Source]":
    from bali_ds.graph.mesh import MeshSource
    from bali_ds.graph.obo import OboSource
    from bali_ds.graph.rrf import RrfFilter, RrfSource
    from bali_ds.graph.table_presets import TABLE_PRESETS
    from bali_ds.graph.tables import TableSource

    kept = RrfFilter(
        languages=tuple(options.language),
        sources=tuple(options.source),
        term_types=tuple(options.term_type),
        license=options.license,
        suppressed=options.suppressed,
        raw_relations=options.raw_relations,
    )
    preset = TABLE_PRESETS.get(options.tsv_preset)
    if options.tsv_preset and not preset:
        raise InputError(
            f"--tsv-preset {options.tsv_preset}: is unknown; {suggestion(options.tsv_preset, TABLE_PRESETS)}"
        )
    pairs = [text.partition("=") for text in options.column]
    if not all(separator and name and own for name, separator, own in pairs):
        raise InputError(f"--column {' '.join(options.column)}: write NAME=COLUMN, for example head_cui=x_id")
    columns = {name: own for name, _, own in pairs} | _prefix_columns(options.prefix_column)
    sources: list[Source] = [RrfSource(folder, kept) for folder in options.rrf]
    sources += [OboSource(path, options.xref) for paths in options.obo for path in paths]
    sources += [MeshSource(path) for path in options.mesh]
    sources += [TableSource(nodes, edges, columns, preset) for nodes, edges in options.tsv]
    sources += [TableSource(None, edges, columns, preset) for edges in options.edges]
    if not sources:
        raise InputError("graph build: no sources given; pass --rrf, --obo, --mesh, --tsv or --edges")
    return sources


def _prefix_columns(columns: list[str]) -> dict[str, str]:
    names = {1: ("prefix",), 2: ("head_prefix", "tail_prefix"), 3: ("prefix", "head_prefix", "tail_prefix")}
    if len(columns) > len(names):
        raise InputError(f"--prefix-column: got {len(columns)} columns; pass at most that of nodes, heads and tails")
    return dict(zip(names.get(len(columns), ()), columns, strict=True))


def _stats(options: argparse.Namespace) -> None:
    from bali_ds.graph.graph_statistics import coverage, graph_statistics
    from bali_ds.graph.knowledge_graph import KnowledgeGraph

    graph = KnowledgeGraph.open(options.graph, verify=True)
    report = graph_statistics(graph)
    if options.corpus:
        from bali_ds.corpus.concept_resolver import ConceptResolver
        from bali_ds.corpus.corpus_files import corpus_documents

        resolve = ConceptResolver(graph).resolve
        documents = (
            [resolve(mention) for mention in document.mentions]
            for entry in options.corpus
            for document in corpus_documents(entry)
        )
        report["corpus"] = coverage(graph, documents)
    emit(report, options.json, statistics_text)


def _show(options: argparse.Namespace) -> None:
    from bali_ds.graph.concept_display import describe_concept, readable
    from bali_ds.graph.knowledge_graph import KnowledgeGraph

    description = describe_concept(KnowledgeGraph.open(options.graph), options.cui)
    if options.png:
        from bali_ds.graph.concept_display import draw_concept

        draw_concept(description, options.png)
    emit(description, options.json, lambda shown: readable(shown, options.limit))


def _search(options: argparse.Namespace) -> None:
    from bali_ds.graph.knowledge_graph import KnowledgeGraph
    from bali_ds.graph.name_search import search_names
    from bali_ds.graph.semantic_types import named_type

    if not options.text.strip():
        raise InputError("graph search: the text is empty")
    found = search_names(KnowledgeGraph.open(options.graph), options.text, options.limit)

    def lines(shown: list[dict[str, Any]]) -> str:
        return "\n".join(
            f"{row['cui']}  {row['name']}"
            + (f"  (also {row['found']})" if row["found"] != row["name"] else "")
            + "".join(f"  [{named_type(each)}]" for each in row["semantic_types"])
            for row in shown
        )

    emit(found, options.json, lambda shown: lines(shown) or f"no name contains {options.text!r}")


def _names(options: argparse.Namespace) -> None:
    from bali_ds.graph.graph_export import dictionary_lines
    from bali_ds.graph.knowledge_graph import KnowledgeGraph

    for line in dictionary_lines(KnowledgeGraph.open(options.graph)):
        print(line)


def _export(options: argparse.Namespace) -> None:
    from bali_ds.graph.graph_export import export_graph
    from bali_ds.graph.knowledge_graph import KnowledgeGraph

    graph = KnowledgeGraph.open(options.graph)
    for path in export_graph(graph, options.format, options.out, overwrite=options.overwrite):
        print(path)


def _fetch(options: argparse.Namespace) -> None:
    from bali_ds.graph.fetch import OPEN_GRAPHS, fetch

    known = OPEN_GRAPHS.get(options.name)
    if known is None and "://" not in options.name:
        raise InputError(f"{options.name}: is not a known graph or a URL; {suggestion(options.name, OPEN_GRAPHS)}")
    digest = fetch(known.address if known else options.name, options.out, options.sha256)
    print(f"{options.out}: SHA-256 {digest}" + (f", license: {known.license}" if known else ""))
    if known:
        print(f"build it with: bali-ds graph build {known.reader} {options.out} --out GRAPH")


def build_text(report: dict[str, Any], out: Path) -> str:
    """Return the report of a build as text: rows read and dropped by file, facts dropped by reason, and the result."""
    lines = []
    for name, counts in report["read"].items():
        found = {what: f"{count:,} {what.removeprefix('dropped: ')}" for what, count in counts.items() if count}
        dropped = ", ".join(text for what, text in found.items() if what.startswith("dropped: "))
        read = ", ".join(text for what, text in found.items() if not what.startswith("dropped: "))
        lines.append(f"{name}: {read}; dropped: {dropped}" if dropped else f"{name}: {read}")
    lines += [f"warning: {warning}" for warning in report["warnings"]]
    lines += [f"dropped: {count:,} {what}" for what, count in report["dropped"].items() if count]
    lines.append(
        f"{out}: {report['concepts']:,} concepts, {report['names']:,} names, {report['edges']:,} edges, "
        f"{report['relations']:,} relations, fingerprint {report['fingerprint'][:16]}"
    )
    return "\n".join(lines)


def statistics_text(report: dict[str, Any]) -> str:
    """Return the statistics of a graph as text, one number per line."""
    lines = []
    for key, value in report.items():
        if isinstance(value, dict):
            lines.append(key.replace("_", " "))
            width = max((len(name) for name in value), default=0)
            lines += [f"  {name:{width}}  {_number(count)}" for name, count in value.items()]
        else:
            lines.append(f"{key.replace('_', ' '):12}  {_number(value)}")
    return "\n".join(lines)


def _number(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.2f}" if isinstance(value, float) else str(value)
