"""MedMentions split by document for the linking benchmark: a training part and a held-out part.

`prepare` builds everything that the benchmark reads, in one folder that can be taken to another machine: the encoder in
half precision, graph and shards of the training documents, the same with shuffled facts, and the two parts.
"""

import gzip
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM

from bali_ds.files import numbered_lines, published_file, write_json
from bali_ds.graph.columns import write_column
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.manifest import read_manifest, seal
from bali_ds.graph.packed_adjacency import pack_adjacency
from bali_ds.inference.exported_directory import TOKENIZER_FILES
from bali_ds.model.pretrained import fresh_model, load_configuration
from bench.inputs.medmentions import bali_ds

HELD_OUT = "held_out"
PARTS = {HELD_OUT: range(3), "training": range(3, 20)}
"""Twentieths of the documents by a hash of their id."""
CORPUS = "corpora/medmentions_st21pv_train.pubtator.txt.gz"
OTHER_CORPORA = {
    "ncbi_disease": "corpora/ncbi_disease/cui_dev.pubtator.txt.gz",
    "bc5cdr": "corpora/bc5cdr/cui_dev.pubtator.txt.gz",
}
"""Development documents of other corpora, with UMLS identifiers as gold."""


def prepare(source: Path, graph_source: Path, encoder: Path, folder: Path) -> None:
    """Write the parts, and build encoder, graphs and shards that are not there yet.

    Args:
        source: a PubTator file with linked mentions, plain or gzip.
        graph_source: a directory of RRF files.
        encoder: a model directory.
        folder: where everything goes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    split_documents(source, folder)
    if not (folder / "encoder" / "config.json").exists():
        half_precision(encoder, folder / "encoder")
    if not (folder / "graph" / "manifest.json").exists():
        bali_ds("graph", "build", "--rrf", graph_source, "--out", folder / "graph")
    if not (folder / "shuffled_graph" / "manifest.json").exists():
        shuffle_facts(folder / "graph", folder / "shuffled_graph")
    for kind in ("", "shuffled_"):
        if not (folder / f"{kind}shards" / "index.json").exists():
            corpus = f"pubtator:{folder / 'training.pubtator.gz'}"
            bali_ds(
                "shards", "build", "--graph", folder / f"{kind}graph", "--corpus", corpus,
                "--tokenizer", folder / "encoder", "--out", folder / f"{kind}shards",
            )  # fmt: skip


class Mentions(NamedTuple):
    """Linked mentions of some documents.

    Attributes:
        mentions: n strings.
        gold: the concept identifiers of each.
        places: (text, start, end) of each in its document.
    """

    mentions: list[str]
    gold: list[tuple[str, ...]]
    places: list[tuple[str, int, int]]


def split_documents(source: Path, folder: Path) -> None:
    """Write the documents of each part as a gzip PubTator file, and its linked mentions as JSON."""
    blocks: dict[str, list[str]] = {part: [] for part in PARTS}
    for block in _blocks(source):
        number = int(hashlib.sha256(block.partition("|")[0].encode()).hexdigest(), 16) % 20
        blocks[next(part for part, numbers in PARTS.items() if number in numbers)].append(block)
    for part, documents in blocks.items():
        with published_file(folder / f"{part}.pubtator.gz") as stream:
            stream.write(gzip.compress("".join(documents).encode(), mtime=0))
        with published_file(folder / f"{part}.json.gz") as stream:
            mentions = _mentions(folder / f"{part}.pubtator.gz")
            stream.write(gzip.compress(json.dumps(mentions).encode(), mtime=0))


def other_corpora(data: Path, folder: Path) -> None:
    """Write the linked mentions of the development documents of other corpora as JSON, unless they are there."""
    for part, file in OTHER_CORPORA.items():
        if (folder / f"{part}.json.gz").exists():
            continue
        with published_file(folder / f"{part}.json.gz") as stream:
            stream.write(gzip.compress(json.dumps(_mentions(data / file)).encode(), mtime=0))


def _blocks(source: Path) -> Iterator[str]:
    """Yield the lines of each document, with an empty line at the end."""
    lines: list[str] = []
    for _, line in numbered_lines(source):
        if line.strip():
            lines.append(line)
        elif lines:
            yield "\n".join([*lines, "", ""])
            lines = []
    if lines:
        yield "\n".join([*lines, "", ""])


def _mentions(file: Path) -> dict[str, Any]:
    from bali_ds.evaluation.linking_data import read_queries

    queries = read_queries(f"pubtator:{file}")
    texts = {text: row for row, text in enumerate(dict.fromkeys(text for text, _, _ in queries.places))}
    places = [(texts[text], start, end) for text, start, end in queries.places]
    return {"texts": list(texts), "places": places, "gold": queries.gold}


def read_mentions(file: Path, graph: KnowledgeGraph) -> Mentions:
    """Return the linked mentions of a part; those of concepts without a name in the graph are dropped."""
    content = json.loads(gzip.decompress(file.read_bytes()))
    cuis = sorted({cui for gold in content["gold"] for cui in gold})
    ids = graph.lookup(cuis).tolist()
    known = {cui for cui, concept in zip(cuis, ids, strict=True) if concept >= 0 and graph.names(concept)}
    found = Mentions([], [], [])
    for (text, start, end), gold in zip(content["places"], content["gold"], strict=True):
        kept = tuple(cui for cui in gold if cui in known)
        if kept:
            found.places.append((content["texts"][text], start, end))
            found.mentions.append(content["texts"][text][start:end])
            found.gold.append(kept)
    return found


def half_precision(encoder: Path, out: Path) -> None:
    """Copy an encoder with its weights, new ones if it has none, in half precision: every variant starts from these."""
    out.mkdir()
    for file in encoder.iterdir():
        if file.name in ("config.json", *TOKENIZER_FILES):
            shutil.copyfile(file, out / file.name)
    if (encoder / "model.safetensors").exists():
        weights = load_file(encoder / "model.safetensors")
        half = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
        save_file(half, out / "model.safetensors", metadata={"format": "pt"})
    else:  # the encoder of the sample data set
        torch.manual_seed(0)
        fresh_model(AutoModelForMaskedLM, load_configuration(encoder), encoder).half().save_pretrained(out)


def shuffle_facts(source: Path, out: Path, seed: int = 0) -> None:
    """Write a graph with other facts in which every concept keeps its number of facts of each relation and direction.

    The tails of the facts of one relation and source are permuted. Facts that would join a concept to itself, or that
    occur twice, are permuted again, and dropped after some attempts.
    """
    graph = KnowledgeGraph.open(source)
    neighbors, kinds = graph.adjacency.read(np.arange(graph.adjacency.size))
    heads = np.repeat(np.arange(graph.num_concepts), np.diff(graph.edge_offsets.astype(np.int64)))
    num_kinds = graph.adjacency.relations.size // 2
    forward = kinds < num_kinds
    heads, kinds, before = heads[forward], kinds[forward], neighbors[forward].astype(np.int64)
    tails, random = before.copy(), np.random.default_rng(seed)
    wrong = np.ones(heads.size, bool)
    for _ in range(50):
        others = random.choice(heads.size, int(wrong.sum()), replace=False)
        moved = np.union1d(np.flatnonzero(wrong), others)
        moved = moved[np.argsort(kinds[moved], kind="stable")]
        tails[moved] = tails[moved[np.lexsort((random.random(moved.size), kinds[moved]))]]
        wrong = (heads == tails) | _repeated(kinds, heads, tails)
        if not wrong.any():
            break
    kept = [column[~wrong] for column in (heads, kinds, tails)]
    _write_facts(source, out, *kept, num_kinds=num_kinds, num_concepts=graph.num_concepts)
    same = np.isin(heads * graph.num_concepts + tails, heads * graph.num_concepts + before).mean()
    print(
        f"{out}: {kept[0].size:,} facts, {int(wrong.sum())} dropped; {same:.1%} join concepts that a fact joined before"
    )


def _repeated(*columns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which rows equal an earlier one."""
    order = np.lexsort(columns)
    ordered = np.stack(columns)[:, order]
    repeated = np.zeros(order.size, bool)
    repeated[order[1:]] = (ordered[:, 1:] == ordered[:, :-1]).all(axis=0)
    return repeated


def _write_facts(
    source: Path,
    out: Path,
    heads: NDArray[np.int64],
    kinds: NDArray[np.int64],
    tails: NDArray[np.int64],
    *,
    num_kinds: int,
    num_concepts: int,
) -> None:
    """Write a copy of a graph with other facts of the same kinds."""
    rows, kinds = np.concatenate([heads, tails]), np.concatenate([kinds, kinds + num_kinds])
    neighbors = np.concatenate([tails, heads])
    order = np.lexsort((neighbors, kinds, rows))
    rows, kinds, neighbors = rows[order], kinds[order], neighbors[order].astype(np.int32)
    shutil.copytree(source, out)
    manifest = read_manifest(out)
    offsets = np.searchsorted(rows, np.arange(num_concepts + 1)).astype(np.uint32)
    words = pack_adjacency(kinds, neighbors, num_kinds, num_concepts)
    for name, column in (("edges.offsets", offsets), ("edges.entries", words)):
        manifest["columns"][name] = write_column(out, name, column)
    content = {key: value for key, value in manifest.items() if key not in ("fingerprint", "checksum")}
    write_json(out / "manifest.json", seal(content))
