"""Mutated inputs of every format are read correctly or refused in one line, without any other exception."""

import gzip
import json
import os
import random

import pytest

from bali_ds.corpus.concept_resolver import ConceptResolver
from bali_ds.corpus.document import ReadReport
from bali_ds.corpus.passages import cut_passages
from bali_ds.corpus.readers import READERS, read_documents
from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.errors import InputError
from bali_ds.graph.knowledge_graph import KnowledgeGraph

MUTATIONS = int(os.environ.get("BALI_MUTATIONS", "200"))
"""Mutations per format; 1,450 give more than 10,000 in total."""

TEXT = "Chronic renal failure of β-é mice. Insulin (INS) was found."
SEEDS = {
    "pubtator": f"1|t|Renal.\n1|a|{TEXT}\n1\t0\t5\tRenal\tDisease\tC0000001|C0000002\n1\tCID\tD1\tD2\n\n2|t|x\n2|a|\n",
    "medline": '<PubmedArticleSet><PubmedArticle><MedlineCitation><PMID Version="1">1</PMID><Article><ArticleTitle>'
    f'Renal <i>x</i></ArticleTitle><Abstract><AbstractText Label="AIM">{TEXT}</AbstractText></Abstract></Article>'
    "</MedlineCitation></PubmedArticle><DeleteCitation><PMID>2</PMID></DeleteCitation></PubmedArticleSet>",
    "jats": "<article><front><article-meta><article-id pub-id-type='pmid'>1</article-id><title-group><article-title>R"
    f"</article-title></title-group></article-meta></front><body><sec><p>{TEXT}</p></sec></body></article>",
    "bioc-xml": f"<collection><document><id>1</id><passage><offset>0</offset><text>{TEXT}</text><annotation><infon "
    "key='identifier'>C0000001</infon><location offset='8' length='5'/><text>renal</text></annotation></passage>"
    "</document></collection>",
    "bioc-json": json.dumps({"id": 1, "passages": [{"offset": 0, "text": TEXT, "annotations": [
        {"infons": {"identifier": "C0000001"}, "text": "renal", "locations": [{"offset": 8, "length": 5}]}]}]}),
    "bern2": json.dumps({"text": TEXT, "annotations": [
        {"id": ["C0000001"], "mention": "renal", "obj": "disease", "prob": 0.5, "span": {"begin": 8, "end": 13}}]}),
    "jsonl": json.dumps({"id": 1, "text": TEXT, "ents": [
        {"start": 8, "end": 13, "kb_ents": [["C0000001", 0.9]]}]}) + '\n{"id": 2, "text": "x"}\n',
}  # fmt: skip
FRAGMENTS = [
    b"", b"\x00", b"\xff", b"\n", b"\t", b"|", b"<", b"&a;", b"]]>", b'"', b"{", b"[[[[", b"-1", b"1e9", b"9" * 30,
    b"NaN", b"\\ud800", b"null", "𝛼é".encode(), b"<!DOCTYPE x [<!ENTITY a 'b'>]>", b"\r", b"\xef\xbb\xbf", b"</p>",
]  # fmt: skip


def mutate(content: bytes, draw: random.Random) -> bytes:
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(content) + 1)
        end = min(len(content), at + draw.choice([0, 0, 1, 1, 3, 40]))
        content = (
            content[:at] + draw.choice([*FRAGMENTS, content[at:end] * 2, bytes([draw.randrange(256)])]) + content[end:]
        )
    if draw.random() < 0.05:
        content = gzip.compress(content)[: draw.choice([None, -5, 20])]
    return content


@pytest.mark.parametrize("name", READERS)
def test_mutated_inputs(name, tmp_path, graph_directory, tokenizer_directory):
    graph, tokenizer = KnowledgeGraph.open(graph_directory), Tokenizer.load(tokenizer_directory)
    resolver = ConceptResolver(graph)
    draw = random.Random(name)
    path = tmp_path / "input"
    read, refused = 0, []
    for _ in range(MUTATIONS):
        path.write_bytes(mutate(SEEDS[name].encode(), draw))
        try:
            documents = list(read_documents(name, path, ReadReport()))
        except InputError as error:
            refused.append(str(error))
            continue
        read += 1
        for document, passages in zip(
            documents, cut_passages(documents, tokenizer, resolver, 24, ReadReport()), strict=True
        ):
            assert all(0 <= m.start < m.end <= len(document.text) for m in document.mentions)
            for passage in passages:
                assert 3 <= len(passage.tokens) <= 24
                rows = passage.mentions
                assert ((rows[:, 0] >= 1) & (rows[:, 0] < rows[:, 1]) & (rows[:, 1] < len(passage.tokens))).all()
                assert ((rows[:, 2] >= 0) & (rows[:, 2] < graph.num_concepts)).all()
    assert read
    assert refused
    assert not any("\n" in message for message in refused)
