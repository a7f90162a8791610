"""Generates the sample data set from its tables; the output is byte-reproducible.

    python shards/sample/generate.py [OUT]

OUT defaults to this folder. The script needs only Python and the `tokenizers` library.
"""

import sys
from pathlib import Path

from encoder import write_encoder
from passages import write_documents
from release import write_release
from tables import Concept, read_concepts, read_facts

SEED = 29
FIRST_QUERY = 91_000_001


def main(out: Path) -> None:
    """Write every generated file into `out`."""
    concepts = read_concepts()
    facts = read_facts(concepts)
    out.mkdir(parents=True, exist_ok=True)
    write_release(out, concepts, facts)
    documents = write_documents(concepts, facts, SEED)
    names = [name for concept in concepts.values() for name in concept.names]
    write_text(out / "corpus.pubtator", "".join(documents))
    write_text(out / "dictionary.txt", "".join(f"{c.cui}||{name}\n" for c in concepts.values() for name in c.names))
    write_text(out / "queries.tsv", queries(concepts))
    texts = [line.split("|", 2)[2] for document in documents for line in document.splitlines()[:2]]
    write_encoder(out / "encoder", [*texts, *names])
    print(f"{out}: {len(concepts)} concepts, {len(names)} names, {len(facts)} facts, {len(documents)} passages")


def queries(concepts: dict[str, Concept]) -> str:
    """Return the queries: surface forms that passages contain (pair seen in training) and forms that none contains."""
    forms = [
        (form, concept.cui, seen)
        for concept in concepts.values()
        for seen, group in ((1, concept.text_forms), (0, concept.held_out_forms))
        for form in group
    ]
    lines = ["pmid\tmention\tcui\tin_dict_exact\tcui_seen_in_train\tpair_seen_in_train"]
    lines += [f"{FIRST_QUERY + number}\t{form}\t{cui}\t0\t1\t{seen}" for number, (form, cui, seen) in enumerate(forms)]
    return "\n".join(lines) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a text file with newline characters as line ends on every platform."""
    path.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
