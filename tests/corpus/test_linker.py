import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bali_ds.corpus.abbreviations import find_abbreviations
from bali_ds.corpus.concept_resolver import ConceptResolver
from bali_ds.corpus.dictionary_linker import DictionaryLinker
from bali_ds.corpus.document import Document, Mention
from bali_ds.corpus.name_index import LONGEST_NAME, open_dictionary
from bali_ds.corpus.normalization import WordHasher, normalize_word, split_words
from bali_ds.corpus.stopwords import is_stop_name
from bali_ds.errors import InputError
from bali_ds.graph.builder import build_graph
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.tables import TableSource

NODES = [
    ("C01", "Heart Failure", "Cardiac failure|HF", "T047", "MESH:D006333"),
    ("C02", "Heart", "", "T023", "MESH:D006321"),
    ("C03", "Acquired immune deficiency syndrome", "AIDS", "T047", ""),
    ("C04", "Tumor", "Neoplasm", "T191", "MESH:D009369"),
    ("C05", "Cold temperature", "Cold|Common cold|Chill", "T070", ""),
    ("C06", "Common cold", "Chill", "T047", ""),
    ("C07", "Hereditary fructose intolerance", "HFI|Fructosemia", "T047", "MESH:D005633;OMIM:229600"),
    ("C08", "Interleukin 2", "IL-2|IL2", "T116", "MESH:D007376"),
    ("C09", "Insulin", "INSA", "T116", "MESH:D007328"),
    ("C10", "INS gene", "Insulin gene|INSA", "T028", "NCBIGENE:3630;MESH:D007328"),
    ("C11", "Anemia", "Anaemia of the newborn", "T047", ""),
    ("C12", "TP53 gene", "Guardian", "T028", ""),
    ("C13", "Warden", "Guardian", "", ""),
]


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    folder = tmp_path_factory.mktemp("linker")
    rows = ["cui\tpreferred_name\tsynonyms\tsemantic_types\tsource_terms", *("\t".join(node) for node in NODES)]
    (folder / "nodes.tsv").write_text("\n".join(rows) + "\n")
    (folder / "edges.tsv").write_text(
        "head_cui\trelation\ttail_cui\tsource\nC06\tisa\tC01\tX\nC06\tisa\tC03\tX\nC13\tisa\tC02\tX\n"
    )
    build_graph([TableSource(folder / "nodes.tsv", folder / "edges.tsv")], folder / "graph")
    return KnowledgeGraph.open(folder / "graph")


@pytest.fixture(scope="module")
def linker(graph, tmp_path_factory):
    return DictionaryLinker(open_dictionary(tmp_path_factory.mktemp("dictionary") / "d", graph), graph)


def links(linker, text):
    (document,) = linker.link([Document("1", text)])
    assert all(text[m.start : m.end] == m.text for m in document.mentions)
    return [(m.text, *m.ids) for m in document.mentions]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Chronic heart failure.", [("heart failure", "C01")]),
        ("HEART FAILURES and hearts", [("HEART FAILURES", "C01"), ("hearts", "C02")]),
        ("The heart. Failure of", [("heart", "C02")]),
        ("heartfailure", []),
        ("tumours, neoplasms", [("tumours", "C04"), ("neoplasms", "C04")]),
        ("it aids patients with AIDS", [("AIDS", "C03")]),
        ("a common cold", [("common cold", "C06")]),
        ("IL-2 and IL 2 and il2", [("IL-2", "C08"), ("IL 2", "C08")]),
        ("anaemia", [("anaemia", "C11")]),
        ("β-insulin–like", [("insulin", "C09")]),
        ("", []),
    ],
)
def test_names_in_text(linker, text, expected):
    assert links(linker, text) == expected


SYMBOLS = [
    ("G1", "IGHM gene", "IGM"), ("G2", "GRAP2 gene", "GADS"), ("G3", "HHAT gene", "SKN"), ("G4", "ESR1 gene", "ERA"),
    ("G5", "Impulse control disorder", "ICD"), ("G6", "Coarse facies syndrome", "CORS"), ("G7", "Nucleotide", "SNP"),
    ("G8", "Tumor necrosis factor", "TNF|tnf alpha"), ("G9", "Hypersensitivity", "Sensitivity"),
    ("H1", "Neoplasm", "Cancer"),
]  # fmt: skip


@pytest.fixture(scope="module")
def symbol_linker(tmp_path_factory):
    """A linker of symbols and common words, in a graph of 3,000 concepts of which 300 are kinds of cancer."""
    folder = tmp_path_factory.mktemp("symbols")
    others = [(f"X{n:04d}", f"cancer kind{n}" if n < 300 else f"thing{n}", "") for n in range(3000)]
    rows = ["cui\tpreferred_name\tsynonyms", *("\t".join(node) for node in SYMBOLS + others)]
    (folder / "nodes.tsv").write_text("\n".join(rows) + "\n")
    (folder / "edges.tsv").write_text("head_cui\trelation\ttail_cui\nG1\tisa\tG2\n")
    build_graph([TableSource(folder / "nodes.tsv", folder / "edges.tsv")], folder / "graph")
    graph = KnowledgeGraph.open(folder / "graph")
    return DictionaryLinker(open_dictionary(folder / "d", graph), graph)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("IgM was high, and the gene IGM", [("IGM", "G1")]),
        ("GAD-7 and GAD, not GADS", [("GADS", "G2")]),
        ("SKN-1, ICD-10, p-TNF, TNF-2 and HLA-SKN", []),
        ("p14(SKN) and (SKN)", [("SKN", "G3")]),
        ("TNF-mediated, anti-TNF, TNF; tumor necrosis", [("TNF", "G8"), ("TNF", "G8"), ("TNF", "G8")]),
        ("the era of ERA", [("ERA", "G4")]),
        ("Cardioderma cor and cors", []),
        ("nucleotide SNPs, SNP; snp", [("nucleotide", "G7"), ("SNPs", "G7"), ("SNP", "G7")]),
        ("Tnf alpha", [("Tnf alpha", "G8")]),
        ("sensitivity 81 %, hypersensitivity", [("hypersensitivity", "G9")]),
        ("cancers", [("cancers", "H1")]),
    ],
)
def test_symbols_and_common_words(symbol_linker, text, expected):
    assert links(symbol_linker, text) == expected


GENE_NODES = [
    ("D1", "Multiple endocrine neoplasia type 1", "MEN1", "T191"),
    ("D2", "Phenylketonuria", "PKU", "T047"),
    ("P1", "Epidermal growth factor receptor", "EGFR", "T116"),
    ("P2", "GTPase Nras", "NRAS", ""),
    ("D3", "Fanconi anemia group A", "FANCA", ""),
    ("D4", "Wiskott-Aldrich Syndrome", "WAS", "T047"),
    ("D5", "Neurofibromatosis 2", "NF2", "T191"),
    ("P5", "Genes, Neurofibromatosis 2", "NF2", ""),
    ("D6", "Lactase deficiency", "LAC1", ""),
    ("D7", "Muscular dystrophy, Duchenne", "DMD", "T047"),
]


@pytest.fixture(scope="module")
def gene_linker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("genes")
    rows = ["cui\tpreferred_name\tsynonyms\tsemantic_types", *("\t".join(node) for node in GENE_NODES)]
    (folder / "nodes.tsv").write_text("\n".join(rows) + "\n")
    (folder / "edges.tsv").write_text("head_cui\trelation\ttail_cui\nD1\tisa\tD2\n")
    build_graph([TableSource(folder / "nodes.tsv", folder / "edges.tsv")], folder / "graph")
    graph = KnowledgeGraph.open(folder / "graph")
    return DictionaryLinker(open_dictionary(folder / "d", graph), graph)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MEN1 is rare.", [("MEN1", "D1")]),
        ("mutations of the MEN1 tumor suppressor gene", []),
        ("exon 10 of MEN1 and the X-linked gene MEN1", []),
        ("FANCA deletions; the loss of FANCA", []),
        ("deletions in FANCA", []),
        ("FANCA patients", [("FANCA", "D3")]),
        ("the LAC1 gene", []),
        ("the EGFR gene, EGFR mutations", [("EGFR", "P1"), ("EGFR", "P1")]),
        ("NRAS G12D mutation", [("NRAS", "P2")]),
        ("phenylketonuria gene, phenylketonuria mutations", [("phenylketonuria", "D2"), ("phenylketonuria", "D2")]),
    ],
)
def test_a_symbol_among_words_about_genes_is_not_a_disease(gene_linker, text, expected):
    assert links(gene_linker, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(MEN1) is rare: MEN1 patients, the MEN1 gene", [("MEN1", "D1"), ("MEN1", "D1")]),
        ("(PKU), the PKU gene", [("PKU", "D2"), ("PKU", "D2")]),
        ("(WAS) and deletions in the gene WAS; WAS patients", [("WAS", "D4"), ("WAS", "D4")]),
        ("(WAS) tumor suppressor; loss of WAS", []),
        ("(NF2); NF2 exons", [("NF2", "D5"), ("NF2", "P5")]),
    ],
)
def test_a_defined_symbol_is_a_gene_where_words_beside_it_say_so(gene_linker, text, expected):
    name = {"M": "Multiple endocrine neoplasia type 1", "P": "Phenylketonuria", "W": "Wiskott-Aldrich syndrome"}
    long_form = name.get(text[1], "Neurofibromatosis 2")
    assert links(gene_linker, f"{long_form} {text}")[1:] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("PKU and DNA", []),
        ("PKU mutations in phenylketonuria", [("PKU", "D2"), ("phenylketonuria", "D2")]),
        ("muscular pain in DMD", []),
        ("Duchenne's dystrophy; DMD mutations", [("DMD", "D7")]),
    ],
)
def test_a_short_symbol_is_a_disease_only_where_the_text_speaks_of_it(gene_linker, text, expected):
    assert links(gene_linker, text) == expected


def test_abbreviations_refer_to_their_long_form_in_the_text(linker):
    assert links(linker, "Heart failure (HF) is common. HF kills.") == [
        ("Heart failure", "C01"), ("HF", "C01"), ("HF", "C01"),
    ]  # fmt: skip
    assert links(linker, "Hybrid fruit import (HFI) grows; HFI is fine.") == []
    assert links(linker, "Intolerance of fructose (HFI) is not named so in the graph.") == [("HFI", "C07")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Common cold.", "C06"),
        ("Cold temperature, cold temperature. Common cold.", "C06"),
        ("Chill.", "C06"),
        ("Cold temperature. Chill.", "C05"),
        ("INSA.", "C09"),
        ("The TP53 gene and INSA.", "C10"),
        ("Interleukin 2 and INSA.", "C09"),
        ("Insulin, the TP53 gene, the TP53 gene and INSA.", "C09"),
        ("TP53 gene and Guardian.", "C12"),
        ("Guardian.", "C13"),
        ("Insulin gene and Guardian.", "C13"),
    ],
)
def test_disambiguation_of_a_name_of_two_concepts(linker, text, expected):
    """Preferred names first, then mentions of the document, then semantic types, then the number of facts."""
    assert links(linker, text)[-1][1] == expected


def test_mentions_have_the_type_of_their_concept(linker):
    (document,) = linker.link([Document("1", "Insulin gene, Warden, heart")])
    assert [mention.type for mention in document.mentions] == ["T028", "", "T023"]


def test_a_batch_of_documents_is_linked_like_each_document_alone(linker):
    texts = [
        " ".join(random.Random(n).choices(["heart", "failure", "(HF)", "AIDS", "cold", "common", ".", "x"], k=30))
        for n in range(40)
    ]
    together = linker.link([Document(str(n), text) for n, text in enumerate(texts)])
    for n, text in enumerate(texts):
        assert [(m.text, *m.ids) for m in together[n].mentions] == links(linker, text)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(["heart", "failure", "common", "cold", "Interleukin", "2", "gene", "Insulin", ",", "x"]),
        max_size=25,
    )
)
def test_longest_matches_are_those_of_a_plain_search(graph, linker, words):
    names = {}
    for concept in range(graph.num_concepts):
        for name in graph.names(concept):
            own = split_words(name).texts
            if not is_stop_name(own):
                names.setdefault(tuple(map(normalize_word, own)), set()).add(concept)
    index = linker._name_index
    matches = index.longest_matches(np.array(WordHasher()(words), np.uint64))
    expected = {}
    for first in range(len(words)):
        for length in range(1, LONGEST_NAME + 1):
            key = tuple(map(normalize_word, words[first : first + length]))
            if len(key) == length and key in names:
                expected[first] = (length, names[key])
    assert matches.words.tolist() == sorted(expected)
    for first, length, row in zip(*(column.tolist() for column in matches), strict=True):
        concepts = set(index.concept_ids[index.offsets[row] : index.offsets[row + 1]].tolist())
        assert (length, concepts) == expected[first]


def test_the_name_index_of_another_graph_is_refused(graph, graph_directory, tmp_path):
    open_dictionary(tmp_path / "d", graph)
    with pytest.raises(InputError, match="is the name index of another graph"):
        open_dictionary(tmp_path / "d", KnowledgeGraph.open(graph_directory))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the heart failure (HF) was", [("HF", "heart failure")]),
        ("methyl chloroform (MCF)", [("MCF", "methyl chloroform")]),
        ("the Gcn5-related N-acetyltransferase (GNAT)", [("GNAT", "Gcn5-related N-acetyltransferase")]),
        ("followed 3,4-methylenedioxymethamphetamine (MDMA)", [("MDMA", "3,4-methylenedioxymethamphetamine")]),
        ("1-Methyl-4-phenylpyridinium (MPP+)", [("MPP+", "1-Methyl-4-phenylpyridinium")]),
        ("with beta-thalassemia major (TM)", [("TM", "beta-thalassemia major")]),
        ("a non-small cell lung cancer (SCLC)", [("SCLC", "non-small cell lung cancer")]),
        ("infection/heart failure (HF)", [("HF", "heart failure")]),
        ("shown before (see Figure 2) and (p < 0.05)", []),
        ("patients (n = 3)", []),
        ("", []),
    ],
)  # fmt: skip
def test_schwartz_hearst(text, expected):
    assert [(a.short, text[a.start : a.end]) for a in find_abbreviations(text)] == expected


@pytest.mark.parametrize(
    ("ids", "kind", "expected"),
    [
        (("C01",), "", ["C01"]),
        (("UMLS:C01",), "", ["C01"]),
        (("MESH:D006333",), "", ["C01"]),
        (("mesh:D006333", "C02"), "", ["C01", "C02"]),
        (("D006333",), "Disease", ["C01"]),
        (("omim:229600", "MESH:D005633"), "disease", ["C07"]),
        (("3630",), "Gene", ["C10"]),
        (("NCBI Gene:3630",), "gene", ["C10"]),
        (("3630",), "Disease", []),
        (("D007328",), "Gene", ["C10"]),
        (("D007328",), "Chemical", ["C09"]),
        (("D999999", "nonsense", "a:b:c", ":"), "Disease", []),
    ],
)
def test_identifiers_are_resolved_to_concepts(graph, ids, kind, expected):
    concept_ids = ConceptResolver(graph).resolve(Mention(0, 1, "x", kind, ids))
    assert [graph.cui(concept_id) for concept_id in concept_ids] == expected
