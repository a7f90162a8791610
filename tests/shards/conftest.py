import random

import pytest

from bali_ds.shards.build import build_shards
from bali_ds.shards.build_settings import BuildSettings, Corpus


def write_corpus(path, names, *, documents, seed, first=0):
    """Write random PubTator text whose mentions are names of the small graph."""
    draw = random.Random(seed)
    cuis = list(names)
    filler = ["was found in the cell.", "with", "and the β-é of", "causes", "Treated patients were", "of the mouse."]
    with open(path, "w", encoding="utf-8") as stream:
        for number in range(first, first + documents):
            text, rows = f"Title of {number}.", []
            abstract = ""
            for _ in range(draw.randint(0, 14)):
                abstract += draw.choice(filler) + " "
                if draw.random() < 0.7:
                    cui = draw.choice(cuis)
                    name = draw.choice(names[cui])
                    start = len(text) + 1 + len(abstract)
                    ids = draw.choice([cui, cui, f"UMLS:{cui}", f"{cui}|{draw.choice(cuis)}", "-1", "C9999999"])
                    rows.append(f"{number}\t{start}\t{start + len(name)}\t{name}\tDisease\t{ids}")
                    abstract += name + " "
            stream.write("\n".join([f"{number}|t|{text}", f"{number}|a|{abstract}", *rows]) + "\n\n")


@pytest.fixture(scope="session")
def corpora(tmp_path_factory, concept_names):
    """Three input files of 60, 5 and 40 documents."""
    folder = tmp_path_factory.mktemp("corpora")
    entries = []
    for number, documents in enumerate((60, 5, 40)):
        path = folder / f"part{number}.txt"
        write_corpus(path, concept_names, documents=documents, seed=number, first=1000 * number)
        entries.append(Corpus("pubtator", path))
    return entries


SETTINGS = BuildSettings(max_tokens=48, stored_fan_out=8, shard_samples=32, validation=0.2, max_name_tokens=6)


@pytest.fixture(scope="session")
def built(tmp_path_factory, corpora, graph_directory, tokenizer_directory):
    """A shard set of the random corpora; tests that change it copy it first."""
    out = tmp_path_factory.mktemp("built") / "shards"
    build_shards(corpora, graph_directory, str(tokenizer_directory), out, SETTINGS)
    return out
