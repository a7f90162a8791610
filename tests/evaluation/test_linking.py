"""Linking figures against a scorer written from the definition, without any of the package's arithmetic."""

import gzip
import json

import numpy as np
import pytest
import torch

from bali_ds.cli import main
from bali_ds.errors import InputError
from bali_ds.evaluation import linking
from bali_ds.evaluation.concept_ranking import rank_by_scores
from bali_ds.evaluation.linking import NOT_FOUND, biosyn_ranks, concept_ranks, evaluate_linking, rank_queries, subsets
from bali_ds.evaluation.linking_data import Queries, read_queries
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.inference.concept_dictionary import ConceptDictionary, read_dictionary
from bali_ds.inference.concept_scorer import Scoring
from bali_ds.inference.context_linker import ContextLinker
from bali_ds.inference.encoder import load


def plain_rank(scores, names, gold):
    """Walk the names from best to worst; each concept takes its rank where it first appears."""
    order = sorted(range(len(names)), key=lambda place: (-scores[place], place))
    ahead: set[str] = set()
    for place in order:
        concepts = names[place][1]
        if concepts & set(gold):
            return 1 + len(ahead - set(gold))
        ahead |= concepts
    return None


class Table:
    """An encoder that looks vectors up."""

    def __init__(self, seed, width=3):
        self.seed, self.width = seed, width
        self.asked: list[str] = []

    def encode(self, texts, **_):
        self.asked += texts
        rows = [
            np.random.default_rng([self.seed, *text.lower().encode()]).integers(-2, 3, self.width) for text in texts
        ]
        return np.array(rows, np.float32)


@pytest.fixture
def made(tmp_path):
    """A dictionary with composites, shared names and case variants, and queries with every flag."""
    draw = np.random.default_rng(3)
    lines = []
    for concept in range(40):
        for name in range(draw.integers(1, 4)):
            lines.append(f"C{concept}||name {draw.integers(60)} {name}")
    lines += ["C1|C2||pair", "C3+C4||plus", "C5||Pair"]
    with gzip.open(tmp_path / "dictionary.txt.gz", "wt") as stream:
        stream.write("\n".join(lines) + "\n")
    rows = ["pmid\tmention\tcui\tin_dict_exact\tcui_seen_in_train\tpair_seen_in_train"]
    for number in range(120):
        cui = f"C{draw.integers(45)}" if number % 7 else "C7|C8"
        rows.append(f"{number}\tMention {draw.integers(50)}\t{cui}\t{draw.integers(2)}\t{draw.integers(2)}\t1")
    (tmp_path / "queries.tsv").write_text("\n".join(rows) + "\n")
    return read_dictionary(tmp_path / "dictionary.txt.gz"), read_queries(tmp_path / "queries.tsv"), tmp_path


def as_names(dictionary):
    return [
        (name, {dictionary.cuis[c] for c in dictionary.concepts[dictionary.offsets[i] : dictionary.offsets[i + 1]]})
        for i, name in enumerate(dictionary.names)
    ]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("block", [1, 2**28])
def test_ranks_equal_the_plain_scorer(made, seed, block, monkeypatch):
    monkeypatch.setattr(linking, "SCORE_BYTES", block)
    dictionary, queries, _ = made
    ranks = rank_queries(Table(seed), dictionary, queries)
    names = as_names(dictionary)
    vectors = Table(seed).encode(list(dictionary.names))
    for query, (mention, gold) in enumerate(zip(queries.mentions, queries.gold, strict=True)):
        expected = plain_rank((vectors @ Table(seed).encode([mention])[0]).tolist(), names, gold)
        assert ranks[query] == (NOT_FOUND if expected is None else expected)


def test_a_hand_made_ranking():
    dictionary = ConceptDictionary(
        names=["a", "b", "c", "d"], cuis=["C1", "C2", "C3", "C4"],
        offsets=np.array([0, 2, 3, 4, 5]), concepts=np.array([0, 1, 0, 2, 3]),
    )  # fmt: skip
    names = np.array([[0.9], [0.8], [0.8], [0.1]], np.float32)
    gold = [("C1",), ("C2",), ("C3",), ("C4",), ("C9",), ("C9", "C3")]
    ranks = concept_ranks(np.ones((1, 1), np.float32), np.zeros(6, np.int64), names, dictionary, gold)
    # The best name belongs to C1 and C2; C3 comes after both, C4 after three.
    assert ranks.tolist() == [1, 1, 3, 4, NOT_FOUND, 3]


def test_each_string_is_encoded_once(made):
    dictionary, queries, _ = made
    table = Table(0)
    rank_queries(table, dictionary, queries)
    assert len(table.asked) == len(set(dictionary.names)) + len(set(queries.mentions))


def test_subsets_follow_the_file(made):
    dictionary, queries, _ = made
    found = subsets(dictionary, queries)
    pairs = {(mention.lower(), gold) for mention, gold in zip(queries.mentions, queries.gold, strict=True)}
    assert len(found["all"]) == 120
    assert len(found["unique"]) == len(pairs)
    exact = queries.flags["in_dict_exact"]
    assert found["unique_not_exact"].tolist() == [row for row in found["unique"] if not exact[row]]
    assert len(found["unique_unseen_pair"]) == 0


def test_measures_and_intervals(made):
    dictionary, queries, _ = made
    result = evaluate_linking(Table(1), dictionary, queries)
    ranks = rank_queries(Table(1), dictionary, queries)
    everything = result["all"]
    assert everything["n"] == 120
    assert everything["acc@5"]["value"] == pytest.approx((ranks <= 5).mean())
    assert everything["mrr"]["value"] == pytest.approx(np.mean([0 if r == NOT_FOUND else 1 / r for r in ranks]))
    assert everything["acc@1"]["low"] <= everything["acc@1"]["value"] <= everything["acc@1"]["high"]
    assert "unique_unseen_pair" not in result
    assert evaluate_linking(Table(1), dictionary, queries) == result


def test_biosyn_layout(tmp_path):
    (tmp_path / "dictionary.txt").write_text("D1||fever\nD2||renal failure\nD3|D4||kidney disease\n")
    folder = tmp_path / "test"
    folder.mkdir()
    (folder / "1.concept").write_text("1||0|5||Disease||Fever||D1\n1||9|14||Disease||pyrexia||D1\n")
    (folder / "2.concept").write_text("2||0|5||Disease||kidney disease||D4+D9\n")
    dictionary, queries = read_dictionary(tmp_path / "dictionary.txt"), read_queries(folder)
    assert queries.gold == [("D1",), ("D1",), ("D4", "D9")]
    found = subsets(dictionary, queries)
    assert [queries.mentions[row] for row in found["unique_not_exact"]] == ["pyrexia"]
    ranks = rank_queries(Table(0, width=64), dictionary, queries)
    assert ranks[0] == ranks[2] == 1


def test_biosyn_counts_names_and_all_parts_of_a_composite_mention():
    """As `evaluate_topk_acc` of BioSyn counts, written here from its description."""
    names = [("fever", {"D1"}), ("pyrexia", {"D1"}), ("hot", {"D2"}), ("renal failure", {"D3"}), ("gout", {"D4"})]
    dictionary = ConceptDictionary.of([(name, sorted(own)) for name, own in names])
    mentions, gold = ["heat", "heat|kidney failure", "gout+heat"], [("D2",), ("D1", "D3"), ("D4", "D2")]
    queries = Queries(mentions, gold, {}, parts=[("heat",), ("heat", "kidney failure"), ("gout", "heat")])
    encoder = Table(2, width=16)
    vectors = encoder.encode(dictionary.names)
    found = biosyn_ranks(encoder, dictionary, queries, vectors)
    for query, parts in enumerate(queries.parts):
        hits = []
        for part in parts:
            scores = vectors @ encoder.encode([part])[0]
            order = sorted(range(len(names)), key=lambda place, scores=scores: (-scores[place], place))
            hits.append([bool(names[place][1] & set(gold[query])) for place in order])
        for k in range(1, 6):
            assert (found[query] <= k) == all(any(hit[:k]) for hit in hits)
    assert set(found) - {1}  # not all are first


def test_identifiers_are_joined_and_prefixed_in_many_ways(tmp_path):
    (tmp_path / "names.txt").write_text(
        "\ufeffUMLS:C0027497||nausea\r\nC0015672; C0013404||tired\r\n", encoding="utf-8"
    )
    (tmp_path / "queries.tsv").write_text(
        "\ufeffmention\tcui\nnausea\tC0027497;C0015672\nfatigue\tUMLS:C0015672\ndyspnea\tC0013404, C0015672\n"
    )
    dictionary, queries = read_dictionary(tmp_path / "names.txt"), read_queries(tmp_path / "queries.tsv")
    assert dictionary.cuis == ["C0027497", "C0015672", "C0013404"]
    assert queries.gold == [("C0027497", "C0015672"), ("C0015672",), ("C0013404", "C0015672")]


def test_a_graph_is_a_dictionary(sample):
    graph = KnowledgeGraph.open(sample.graph)
    dictionary = read_dictionary(sample.graph)
    assert len(dictionary.cuis) == graph.num_concepts
    assert {graph.cui(0)} <= set(dictionary.concepts_of(dictionary.names.index(graph.names(0)[0])))


def test_gold_concepts_that_the_dictionary_lacks_are_counted(tmp_path, tiny_encoder, capsys):
    (tmp_path / "names.txt").write_text("C0000001||fever\nD000002||gout\n")
    rows = ["fever\tC0000001", "gout\tD000003;D000002", "flu\tD000003", "a\tOMIM:1", "b\tOMIM:1"]
    (tmp_path / "queries.tsv").write_text("\n".join(["mention\tcui", *rows]) + "\n")
    command = ["evaluate", "linking", "--model", str(tiny_encoder), "--dictionary", str(tmp_path / "names.txt")]
    command += ["--queries", str(tmp_path / "queries.tsv")]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["all"]["gold"] == {
        "mentions": 5,
        "mentions_without_gold": 3,
        "vocabularies": {
            "MESH": {"concepts": 2, "missing": 1},
            "OMIM": {"concepts": 1, "missing": 1},
            "UMLS": {"concepts": 1, "missing": 0},
        },
    }
    (tmp_path / "queries.tsv").write_text("mention\tcui\nnausea\tMESH:D009325\nfatigue\tMESH:D005221\n")
    assert main(command) == 2
    said = (
        "2 of 2 mentions have no gold concept in the dictionary (lacking: MESH 2 of 2): gold concepts look like MESH:D"
    )
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dictionary", "C1||fever\nC2 fever\n", r":2: expected CUI\|\|name"),
        ("dictionary", "", "holds no names"),
        ("queries", "mention\tid\nx\ty\n", ":1: column 'cui' is missing"),
        ("queries", "mention\tcui\nx\n", ":2: has 1 columns, the header has 2"),
        ("queries", "mention\tcui\n", "holds no queries"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path, name, content, message):
    file = tmp_path / "file"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        (read_dictionary if name == "dictionary" else read_queries)(file)


def test_damaged_gzip_is_one_line(made):
    folder = made[2]
    file = folder / "dictionary.txt.gz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match="compressed data is truncated or damaged"):
        read_dictionary(file)


def test_the_command_prints_what_scripts_rely_on(made, tiny_encoder, capsys):
    folder = made[2]
    arguments = ["evaluate", "linking", "--model", str(tiny_encoder), "--dictionary", str(folder / "dictionary.txt.gz")]
    arguments += ["--queries", str(folder / "queries.tsv")]
    assert main([*arguments, "--json", "--against", str(tiny_encoder)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"all", "unique", "unique_not_exact", "unique_unseen_cui"}
    assert set(result["all"]) == {"n", "acc@1", "acc@5", "acc@20", "mrr", "difference", "gold"}
    assert set(result["all"]["acc@1"]) == {"value", "low", "high"}
    assert result["all"]["difference"]["mrr"] == {"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    assert main([*arguments, "--pooling", "cls"]) == 0
    assert "unique_not_exact" in capsys.readouterr().out
    assert main([*arguments[:3], str(folder), *arguments[4:]]) == 2
    assert "has no config.json" in capsys.readouterr().err


def test_queries_without_flags(tmp_path):
    (tmp_path / "queries.tsv").write_text("cui\tmention\nC1\tFever\n")
    queries = read_queries(tmp_path / "queries.tsv")
    assert queries == Queries(["Fever"], [("C1",)], {})


def test_queries_are_read_from_all_files_of_a_folder(tmp_path):
    for number in (2, 1):
        text = f"{number}|t|name {number}\n{number}|a|\n{number}\t0\t6\tname {number}\tX\tC{number}\n"
        (tmp_path / f"{number}.txt").write_text(text)
    for entry in (f"pubtator:{tmp_path}", f"pubtator:{tmp_path}/*.txt"):
        assert read_queries(entry).gold == [("C1",), ("C2",)]


@pytest.mark.parametrize("at_once", [1, 3, 7])
def test_ranks_under_scores_count_concepts_of_higher_scores_and_earlier_equal_ones(at_once):
    random = np.random.default_rng(at_once)
    scores = random.integers(0, 4, (7, 6)).astype(np.float32)
    cuis = [f"C{number}" for number in range(6)]
    gold = [("C5",), ("X",), ("C1", "C4", "X"), ("C0",), (), ("C3", "C2"), ("C4",)]

    class Scored:
        dictionary = ConceptDictionary.of([(cui.lower(), [cui]) for cui in cuis])

        def scores(self, *_):
            for begin in range(0, 7, at_once):
                block = scores[begin : begin + at_once]
                yield block, torch.from_numpy(block)

    expected = []
    for row, own in zip(scores, gold, strict=True):
        order = sorted(range(6), key=lambda number: (-row[number], number))
        ranked = [cuis[number] for number in order]
        expected.append(min((ranked.index(cui) + 1 for cui in own if cui in ranked), default=NOT_FOUND))
    assert rank_by_scores(Scored(), Queries(["x"] * 7, gold, {})).tolist() == expected


def test_a_corpus_is_asked_with_and_without_its_texts(tiny_encoder, tmp_path, capsys):
    corpus, dictionary = tmp_path / "corpus.txt", tmp_path / "dictionary.txt"
    corpus.write_text("1|t|name 1\n1|a|plus pair 2 3\n1\t0\t6\tname 1\tX\tUMLS:C1\n1\t12\t18\tpair 2\tX\tC2\n")
    dictionary.write_text("C1||name 1\nC2||pair 2\nC3||mention\n")
    queries = read_queries(f"pubtator:{corpus}")
    assert queries.mentions == ["name 1", "pair 2"]
    assert queries.gold == [("C1",), ("C2",)]
    encoder, names = load(tiny_encoder), read_dictionary(dictionary)
    assert rank_queries(encoder, names, queries).tolist() == [1, 1]
    vectors = encoder.encode_mentions([("name 1 plus pair 2 3", 0, 6), ("name 1 plus pair 2 3", 12, 18)])
    scores = vectors @ encoder.encode(["name 1", "pair 2", "mention"]).T
    expected = [1 + int((row > row[gold]).sum()) for gold, row in enumerate(scores)]
    linker = ContextLinker(tiny_encoder, names, Scoring(context=1.0))
    assert rank_by_scores(linker, queries).tolist() == expected
    options = ["evaluate", "linking", "--model", str(tiny_encoder), "--dictionary", str(dictionary), "--in-context"]
    assert main([*options, "--queries", f"pubtator:{corpus}"]) == 0
    table = tmp_path / "queries.tsv"
    table.write_text("mention\tcui\nname 1\tC1\n")
    capsys.readouterr()
    assert main([*options, "--queries", str(table)]) == 2
    assert "have no texts" in capsys.readouterr().err
