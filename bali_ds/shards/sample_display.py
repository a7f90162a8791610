"""One sample in words."""

from pathlib import Path
from typing import Any

from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.errors import InputError
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.shards.shard_set import ShardSet


def show(path: Path, key: str, graph_path: Path | None, tokenizer_source: str | None) -> dict[str, Any]:
    """Return a sample as plain values; with names where a graph is given and text where a tokenizer is.

    Raises:
        InputError: there is no such sample, or graph or tokenizer are not the shards'.
    """
    shards = ShardSet.open(path)
    row = _row(shards, key)
    tokens, mentions, edges = shards.arrays(row)
    graph = _graph(shards, graph_path) if graph_path else None
    tokenizer = _tokenizer(shards, tokenizer_source) if tokenizer_source else None

    def concept(number: int) -> str:
        return f"{graph.cui(number)} {graph.preferred_name(number)}" if graph else str(number)

    def words(ids: list[int]) -> str:
        return tokenizer.decode(ids) if tokenizer else " ".join(map(str, ids))

    return {
        "key": shards.key(row),
        "row": row,
        "shard": shards.shards[int(shards.shard_numbers(row)[0])].name,
        "text": words(tokens.tolist()),
        "mentions": [
            {"start": start, "end": end, "text": words(tokens[start:end].tolist()), "concept": concept(number)}
            for start, end, number in mentions.tolist()
        ],
        "edges": [
            {
                "concept": concept(number),
                "relation": graph.relation_name(relation) if graph else str(relation),
                "neighbor": concept(neighbor),
            }
            for number, relation, neighbor in edges.tolist()
        ],
    }


def readable(value: dict[str, Any]) -> str:
    """Return a shown sample as text."""
    lines = [f"{value['key']} (row {value['row']} in {value['shard']})", "", value["text"], ""]
    lines += [f"  {m['start']:4d}-{m['end']:<4d} {m['text']}  →  {m['concept']}" for m in value["mentions"]]
    lines.append("")
    lines += [f"  {e['concept']}  —{e['relation']}→  {e['neighbor']}" for e in value["edges"]]
    return "\n".join(lines)


def _row(shards: ShardSet, key: str) -> int:
    for row, name in enumerate(shards.keys(range(len(shards.samples)))):
        if name == key:
            return row
    if key.isdecimal() and int(key) < len(shards.samples):
        return int(key)
    raise InputError(
        f"{shards.path}: has no sample {key!r}; keys look like {shards.key(0) if len(shards.samples) else ''}"
    )


def _graph(shards: ShardSet, path: Path) -> KnowledgeGraph:
    graph = KnowledgeGraph.open(path)
    if graph.fingerprint != shards.index["graph_fingerprint"]:
        raise InputError(
            f"{path}: its fingerprint {graph.fingerprint} is not the shards' {shards.index['graph_fingerprint']}"
        )
    return graph


def _tokenizer(shards: ShardSet, source: str) -> Tokenizer:
    tokenizer = Tokenizer.load(source)
    wanted = shards.index["tokenizer"]
    if tokenizer.fingerprint != wanted["fingerprint"]:
        raise InputError(
            f"tokenizer {source}: its fingerprint {tokenizer.fingerprint} is not the shards' {wanted['fingerprint']} "
            f"({wanted['name']})"
        )
    return tokenizer
