"""The committed sample data set is what its generator writes, well-formed and free of leaks."""

import csv
import itertools
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

SAMPLE = Path(__file__).parents[2] / "shards" / "sample"
ENCODER = [f"encoder/{name}.json" for name in ("config", "special_tokens_map", "tokenizer", "tokenizer_config")]
RELEASE = [f"{name}.RRF" for name in ("MRCONSO", "MRDOC", "MRREL", "MRSTY")]
GENERATED = [*ENCODER, *RELEASE, "corpus.pubtator", "dictionary.txt", "queries.tsv"]


def read_rrf(name: str, columns: int) -> list[list[str]]:
    rows = [line.split("|") for line in (SAMPLE / name).read_text(encoding="utf-8").splitlines()]
    assert {len(row) for row in rows} == {columns + 1}
    assert {row.pop() for row in rows} == {""}
    return rows


def read_table(name: str) -> list[dict[str, str]]:
    with (SAMPLE / "tables" / f"{name}.tsv").open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def read_queries() -> list[dict[str, str]]:
    with (SAMPLE / "queries.tsv").open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


@pytest.fixture(scope="module")
def names() -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for row in read_rrf("MRCONSO.RRF", 18):
        found[row[0]].append(row[14])
    return dict(found)


@pytest.fixture(scope="module")
def documents() -> list[tuple[str, list[list[str]]]]:
    """Text, and mention rows without the document number, of each document."""
    found = []
    for block in (SAMPLE / "corpus.pubtator").read_text(encoding="utf-8").split("\n\n")[:-1]:
        title, abstract, *mentions = block.split("\n")
        number = title.split("|")[0]
        assert title.startswith(f"{number}|t|")
        assert abstract.startswith(f"{number}|a|")
        rows = [mention.split("\t") for mention in mentions]
        assert {row.pop(0) for row in rows} <= {number}
        found.append((f"{title.split('|', 2)[2]} {abstract.split('|', 2)[2]}", rows))
    return found


@pytest.fixture(scope="module")
def linked_strings(documents) -> dict[str, Counter]:
    found: dict[str, Counter] = defaultdict(Counter)
    for _, mentions in documents:
        for _, _, text, _, identifiers in mentions:
            for cui in identifiers.split("|"):
                found[cui][text.lower()] += 1
    return found


def test_generator_writes_the_committed_bytes(tmp_path):
    script = SAMPLE / "generate.py"
    environment = {"PYTHONDONTWRITEBYTECODE": "1"}  # random hash seed
    subprocess.run([sys.executable, script, tmp_path], check=True, env=environment, capture_output=True)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == set(GENERATED)
    differing = [name for name in GENERATED if (tmp_path / name).read_bytes() != (SAMPLE / name).read_bytes()]
    assert not differing


def test_release_is_well_formed(names):
    concepts = {row["cui"] for row in read_table("concepts")}
    atoms = read_rrf("MRCONSO.RRF", 18)
    assert set(names) == concepts
    assert all(re.fullmatch(r"C\d{7}", cui) for cui in concepts)
    assert len({row[7] for row in atoms}) == len(atoms)
    assert Counter(row[0] for row in atoms if row[2] == "P") == dict.fromkeys(concepts, 1)
    assert {row[0] for row in read_rrf("MRSTY.RRF", 6)} == concepts
    spelled = Counter(name.lower() for group in names.values() for name in group)
    assert max(spelled.values()) == 1


def test_every_fact_is_stated_from_both_ends(names):
    inverse = {row[1]: row[3] for row in read_rrf("MRDOC.RRF", 4)}
    assert all(inverse[partner] == name for name, partner in inverse.items())
    rel = {"CHD": "PAR", "PAR": "CHD", "RO": "RO"}
    rows = read_rrf("MRREL.RRF", 16)
    stated = {(row[4], row[7], row[3], row[0]) for row in rows}
    assert len(stated) == len(rows)
    assert {(tail, inverse[name], rel[label], head) for head, name, label, tail in stated} == stated
    assert {row[0] for row in rows} == set(names)
    assert all(row[0] != row[4] for row in rows)
    cui = {group[0]: concept for concept, group in names.items()}
    written = {
        (cui[row["concept"]], row["relation"], cui[tail])
        for row in read_table("facts")
        for tail in row["related_concepts"].split(";")
    }
    assert written <= {(head, name, tail) for head, name, _, tail in stated}
    assert 2 * len(written) == len(rows)


def test_no_drug_is_both_indicated_and_contraindicated():
    stated = defaultdict(set)
    for row in read_table("facts"):
        stated[row["relation"]] |= {(row["concept"], other) for other in row["related_concepts"].split(";")}
    assert not stated["may_be_treated_by"] & stated["has_contraindicated_drug"]
    for relation, pairs in stated.items():
        assert not pairs & {(tail, head) for head, tail in pairs}, relation


def test_offsets_are_exact_code_points(documents):
    for text, mentions in documents:
        spans = [(int(start), int(end)) for start, end, *_ in mentions]
        assert [text[start:end] for start, end in spans] == [mention[2] for mention in mentions]
        assert spans == sorted(spans)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_corpus_covers_what_readers_must_handle(documents, names):
    rows = [mention for _, mentions in documents for mention in mentions]
    identifiers = [row[4] for row in rows]
    assert {cui for cell in identifiers for cui in cell.split("|")} - {"-", "-1"} == set(names)
    assert {"-", "-1"} <= set(identifiers)
    assert sum("|" in cell for cell in identifiers) >= 100
    assert sum(not text.isascii() for text, _ in documents) >= 100
    assert len({text for text, _ in documents}) == 3000


def test_dictionary_holds_every_name(names):
    lines = (SAMPLE / "dictionary.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [f"{cui}||{name}" for cui in sorted(names) for name in names[cui]]


def test_queries_are_no_names_and_their_concepts_occur(names, linked_strings):
    queries = read_queries()
    spelled = {name.lower() for group in names.values() for name in group}
    assert not [query["mention"] for query in queries if query["mention"].lower() in spelled]
    assert {query["in_dict_exact"] for query in queries} == {"0"}
    assert {query["cui_seen_in_train"] for query in queries} == {"1"}
    assert {query["cui"] for query in queries} <= set(linked_strings) & set(names)
    assert len(queries) >= 300
    assert len({query["cui"] for query in queries}) >= 150
    assert len({query["mention"].lower() for query in queries}) == len(queries)


def test_queries_state_correctly_whether_training_has_the_pair(linked_strings):
    everywhere = Counter()
    for strings in linked_strings.values():
        everywhere.update(strings)
    known_words = {word for string in everywhere for word in words(string)}
    for query in read_queries():
        mention, seen = query["mention"].lower(), query["pair_seen_in_train"]
        if seen == "1":
            assert linked_strings[query["cui"]][mention] >= 4, mention
        else:
            assert everywhere[mention] == 0, mention
            assert set(words(mention)) <= known_words, mention


def test_no_sentence_states_a_synonym(documents):
    stated = re.compile(
        r"also (known|called|named)|synonym|abbreviat|short for|means the same|i\.e\.|aka", re.IGNORECASE
    )
    assert not [text for text, _ in documents if stated.search(text)]
    for text, mentions in documents:
        forms = defaultdict(set)
        for _, _, string, _, cui in mentions:
            if "|" not in cui and not cui.startswith("-"):
                forms[cui].add(string.lower())
        assert all(len(group) == 1 for group in forms.values()), text


def test_encoder_directory_loads_without_weights():
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(SAMPLE / "encoder")
    tokenizer = transformers.AutoTokenizer.from_pretrained(SAMPLE / "encoder")
    assert config.vocab_size == len(tokenizer) == len(set(tokenizer.get_vocab().values()))
    assert config.max_position_embeddings == tokenizer.model_max_length == 160
    assert tokenizer.convert_ids_to_tokens(tokenizer("Heart")["input_ids"]) == ["[CLS]", "heart", "[SEP]"]
    assert [tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id] == [0, 2, 3]
    text = " ".join(query["mention"] for query in read_queries())
    assert tokenizer.unk_token_id not in tokenizer(text, truncation=False)["input_ids"]
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if "__pycache__" not in path.parts) < 3_000_000
