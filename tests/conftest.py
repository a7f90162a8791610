"""What tests of several rooms share: real data where there is any, a small tokenizer, a small graph."""

import os
import random
from pathlib import Path

import pytest
import tokenizers

from bali_ds.graph.builder import build_graph
from bali_ds.graph.tables import TableSource

CONCEPTS = 60
"""Concepts C0000000 to C0000059; C0000000 is a hub."""

_TEXT = (
    "renal failure chronic acute syndrome disease kinase receptor alpha beta gamma heart liver cell growth factor "
    "binding protein inhibitor therapy patients treated with and of in the a was were found to cause increase mouse "
    "human gene expression levels response insulin diabetes cancer tumour necrosis pathway signal bone marrow"
)
WORDS = _TEXT.split(" ")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real corpora and graphs."""
    default = Path(__file__).parents[2] / "shared" / "data"
    path = Path(os.environ.get("BALI_REAL_DATA", default))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set BALI_REAL_DATA")
    return path


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory) -> Path:
    """A directory with the tokenizer.json of a small BERT WordPiece vocabulary."""
    draw = random.Random(5)
    text = [
        " ".join(draw.choices(WORDS, k=12)) + ". 0123456789 (abcdefghij, klmnopqrstuvwxyz; β-é)" for _ in range(400)
    ]
    wordpiece = tokenizers.BertWordPieceTokenizer(lowercase=True)
    wordpiece.train_from_iterator(text, vocab_size=300, min_frequency=1, show_progress=False)
    directory = tmp_path_factory.mktemp("tokenizer")
    wordpiece.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="session")
def concept_names() -> dict[str, list[str]]:
    """The names of the small graph's concepts, preferred name first; no two concepts share one."""
    return {f"C{n:07d}": [f"{WORDS[n % 30]} {WORDS[n // 3 % 40 + 5]} {n}", f"synonym {n}"] for n in range(CONCEPTS)}


@pytest.fixture(scope="session")
def graph_directory(tmp_path_factory, concept_names) -> Path:
    """A graph of 60 concepts: a hub, a chain, random facts of three relations, one isolated concept."""
    draw = random.Random(7)
    folder = tmp_path_factory.mktemp("graph")
    cuis = list(concept_names)
    facts = {(cuis[0], "has_part", cui, "MADE") for cui in cuis[1:50]}
    facts |= {(cuis[n], "isa", cuis[n + 1], "MADE") for n in range(1, 40)}
    facts |= {(*draw.sample(cuis[:-1], 1), "treats", *draw.sample(cuis[:-1], 1), "MADE") for _ in range(60)}
    nodes = [
        f"{cui}\t{names[0]}\t{'|'.join(names[1:])}\tT047\t\tMESH:D{n:06d}"
        for n, (cui, names) in enumerate(concept_names.items())
    ]
    columns = "cui\tpreferred_name\tsynonyms\tsemantic_types\tgroup\tsource_terms"
    (folder / "nodes.tsv").write_text("\n".join([columns, *nodes]) + "\n")
    rows = ["\t".join(fact) for fact in sorted(facts) if fact[0] != fact[2]]
    (folder / "edges.tsv").write_text("\n".join(["head_cui\trelation\ttail_cui\tsource", *rows]) + "\n")
    build_graph([TableSource(folder / "nodes.tsv", folder / "edges.tsv")], folder / "graph")
    return folder / "graph"
