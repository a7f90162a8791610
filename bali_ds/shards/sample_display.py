"""Samples as plain values, as text with the mentions marked in it, and as an HTML page."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.errors import InputError
from bali_ds.files import published_file
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.randomness import derive, permute
from bali_ds.shards.shard_set import ShardSet


class SampleDisplay:
    """Shows the samples of a shard set, with names if a graph is given and with text if a tokenizer is given.

    Raises:
        InputError: the shards were built with another graph or tokenizer.
    """

    def __init__(self, path: Path, graph_path: Path | None, tokenizer_source: str | None) -> None:
        self._shards = ShardSet.open(path)
        self._graph = _graph(self._shards, graph_path) if graph_path else None
        self._tokenizer = _tokenizer(self._shards, tokenizer_source) if tokenizer_source else None

    def show(self, key: str) -> dict[str, Any]:
        """Return a sample by its key or row as plain values.

        Raises:
            InputError: the sample does not exist.
        """
        return self._values(_sample_row(self._shards, key))

    def show_random(self, count: int, seed: int) -> list[dict[str, Any]]:
        """Return `count` samples, or all if there are fewer, in a random order that the seed determines."""
        total = len(self._shards.samples)
        rows = permute(np.arange(min(max(count, 0), total)), total, derive(seed, "show"))
        return [self._values(row) for row in rows.tolist()]

    def _values(self, sample_row: int) -> dict[str, Any]:
        shards, graph = self._shards, self._graph
        tokens, mentions, edges = shards.arrays(sample_row)
        return {
            "key": shards.key(sample_row),
            "row": sample_row,
            "shard": shards.shards[int(shards.shard_numbers(sample_row)[0])].name,
            "text": self._text(tokens.tolist()),
            "pieces": self._pieces(tokens.tolist(), mentions.tolist()),
            "mentions": [
                {
                    "start": start,
                    "end": end,
                    "text": self._text(tokens[start:end].tolist()),
                    "concept": self._concept(concept_id),
                }
                for start, end, concept_id in mentions.tolist()
            ],
            "edges": [
                {
                    "concept": self._concept(concept_id),
                    "relation": graph.relation_name(relation) if graph else str(relation),
                    "neighbor": self._concept(neighbor),
                }
                for concept_id, relation, neighbor in edges.tolist()
            ],
        }

    def _concept(self, concept_id: int) -> str:
        graph = self._graph
        return f"{graph.cui(concept_id)} {graph.preferred_name(concept_id)}" if graph else str(concept_id)

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids) if self._tokenizer else " ".join(map(str, ids))

    def _pieces(self, tokens: list[int], mentions: list[list[int]]) -> list[dict[str, Any]]:
        """Return the passage in pieces: text, and the concepts of the mentions that overlap there."""
        spans: list[tuple[int, int, list[str]]] = []
        for start, end, concept_id in mentions:
            if spans and start < spans[-1][1]:
                first, last, concepts = spans.pop()
                spans.append((first, max(last, end), [*concepts, self._concept(concept_id)]))
            else:
                spans.append((start, end, [self._concept(concept_id)]))
        text = self._text(tokens[1:-1])
        pieces, done = [], 0
        for start, end, concepts in spans:
            before = text[: len(self._text(tokens[1:start]))]
            through = text[: len(self._text(tokens[1:end]))]
            space = len(through[len(before) :]) - len(through[len(before) :].lstrip())
            pieces.append({"text": text[done : len(before) + space], "concepts": []})
            pieces.append({"text": through[len(before) + space :], "concepts": concepts})
            done = len(through)
        return [piece for piece in (*pieces, {"text": text[done:], "concepts": []}) if piece["text"]]


def readable(value: dict[str, Any]) -> str:
    """Return the values of a sample as text."""
    lines = [f"{value['key']} (row {value['row']} in {value['shard']})", "", value["text"], ""]
    lines += [f"  {m['start']:4d}-{m['end']:<4d} {m['text']}  →  {m['concept']}" for m in value["mentions"]]
    lines.append("")
    lines += [f"  {e['concept']}  —{e['relation']}→  {e['neighbor']}" for e in value["edges"]]
    return "\n".join(lines)


def marked(value: dict[str, Any]) -> str:
    """Return the passage of a sample with its mentions in brackets, each followed by its concepts."""
    pieces = (
        f"[{piece['text']} → {'; '.join(piece['concepts'])}]" if piece["concepts"] else piece["text"]
        for piece in value["pieces"]
    )
    return f"{value['key']}\n  {''.join(pieces)}\n"


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.9 sans-serif; max-width: 50em; margin: 2em auto; }}
mark {{ padding: 0 .2em; border-radius: .2em; }} mark small {{ color: #666; }} h2 {{ font-size: 1em; color: #666; }}
</style></head><body><h1>{title}</h1>
{body}
</body></html>
"""


def write_page(values: Sequence[dict[str, Any]], title: str, target: Path) -> None:
    """Write an HTML page of passages with their mentions marked.

    Raises:
        InputError: the file cannot be written.
    """
    body = "\n".join(
        f"<h2>{escape(value['key'])}</h2><p>{''.join(map(_marked_html, value['pieces']))}</p>" for value in values
    )
    with published_file(target, "w") as stream:
        stream.write(_PAGE.format(title=escape(title), body=body))


def _marked_html(piece: dict[str, Any]) -> str:
    text = escape(piece["text"])
    concepts = escape("; ".join(piece["concepts"]))
    return f"<mark>{text} <small>{concepts}</small></mark>" if concepts else text


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
