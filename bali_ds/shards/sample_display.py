"""One sample as plain values and as text."""

from pathlib import Path
from typing import Any

from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.errors import InputError
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.shards.shard_set import ShardSet


def show(path: Path, key: str, graph_path: Path | None, tokenizer_source: str | None) -> dict[str, Any]:
    """Return a sample as plain values, with names if a graph is given and with text if a tokenizer is given.

    Raises:
        InputError: the sample does not exist, or the shards were built with another graph or tokenizer.
    """
    shards = ShardSet.open(path)
    sample_row = _sample_row(shards, key)
    tokens, mentions, edges = shards.arrays(sample_row)
    graph = _graph(shards, graph_path) if graph_path else None
    tokenizer = _tokenizer(shards, tokenizer_source) if tokenizer_source else None

    def concept(concept_id: int) -> str:
        return f"{graph.cui(concept_id)} {graph.preferred_name(concept_id)}" if graph else str(concept_id)

    def text(ids: list[int]) -> str:
        return tokenizer.decode(ids) if tokenizer else " ".join(map(str, ids))

    return {
        "key": shards.key(sample_row),
        "row": sample_row,
        "shard": shards.shards[int(shards.shard_numbers(sample_row)[0])].name,
        "text": text(tokens.tolist()),
        "mentions": [
            {"start": start, "end": end, "text": text(tokens[start:end].tolist()), "concept": concept(concept_id)}
            for start, end, concept_id in mentions.tolist()
        ],
        "edges": [
            {
                "concept": concept(concept_id),
                "relation": graph.relation_name(relation) if graph else str(relation),
                "neighbor": concept(neighbor),
            }
            for concept_id, relation, neighbor in edges.tolist()
        ],
    }


def readable(value: dict[str, Any]) -> str:
    """Return the values of `show` as text."""
    lines = [f"{value['key']} (row {value['row']} in {value['shard']})", "", value["text"], ""]
    lines += [f"  {m['start']:4d}-{m['end']:<4d} {m['text']}  →  {m['concept']}" for m in value["mentions"]]
    lines.append("")
    lines += [f"  {e['concept']}  —{e['relation']}→  {e['neighbor']}" for e in value["edges"]]
    return "\n".join(lines)


def _sample_row(shards: ShardSet, key: str) -> int:
    for sample_row, name in enumerate(shards.keys(range(len(shards.samples)))):
        if name == key:
            return sample_row
    if key.isdecimal() and int(key) < len(shards.samples):
        return int(key)
    raise InputError(
        f"{shards.path}: has no sample {key!r}; use a key such as {shards.key(0)}, or a row below {len(shards.samples)}"
    )


def _graph(shards: ShardSet, path: Path) -> KnowledgeGraph:
    graph = KnowledgeGraph.open(path)
    if graph.fingerprint != shards.index["graph_fingerprint"]:
        raise InputError(
            f"{path}: has fingerprint {graph.fingerprint}, the shards need {shards.index['graph_fingerprint']}"
        )
    return graph


def _tokenizer(shards: ShardSet, source: str) -> Tokenizer:
    tokenizer = Tokenizer.load(source)
    wanted = shards.index["tokenizer"]
    if tokenizer.fingerprint != wanted["fingerprint"]:
        raise InputError(
            f"tokenizer {source}: has fingerprint {tokenizer.fingerprint}, the shards need {wanted['fingerprint']} "
            f"({wanted['name']})"
        )
    return tokenizer
