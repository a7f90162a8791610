"""Readers of all formats except PubTator text: what they yield, what they refuse, counts of real files."""

import gzip
import json

import pytest

from bali_ds import xml_elements
from bali_ds.corpus.document import Document, ReadReport
from bali_ds.corpus.readers import join_mentions, read_documents
from bali_ds.errors import InputError


def read(tmp_path, name, content):
    path = tmp_path / "input"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    report = ReadReport()
    return list(read_documents(name, path, report)), report


CITATION = """<MedlineCitation><PMID Version="2">{pmid}</PMID><Article><ArticleTitle>{title}</ArticleTitle>
{abstract}</Article>{other}</MedlineCitation>"""


def citations(*items, root="PubmedArticleSet"):
    body = "".join(f"<PubmedArticle>{item}</PubmedArticle>" for item in items)
    return f'<?xml version="1.0"?><!DOCTYPE {root} PUBLIC "-//NLM//DTD" "https://nowhere.invalid/x.dtd"><{root}>{body}</{root}>'


def test_medline_structured_abstract_and_inline_markup(tmp_path):
    abstract = (
        '<Abstract><AbstractText Label="AIM" NlmCategory="OBJECTIVE">To <i>see</i> H<sub>2</sub>O\n &lt; 3.'
        "</AbstractText>"
        '<AbstractText Label="UNLABELLED">Then.</AbstractText><AbstractText/>'
        "<CopyrightInformation>(c)</CopyrightInformation></Abstract>"
    )
    item = CITATION.format(pmid=7, title="A <b>bold</b> title.", abstract=abstract, other="")
    (document,), report = read(tmp_path, "medline", citations(item))
    assert document == Document("7", "A bold title. AIM: To see H2O < 3. Then.")
    assert report.counts == {"documents": 1}


def test_medline_other_abstracts_deletions_and_old_files(tmp_path):
    french = '<OtherAbstract Language="fre"><AbstractText>Non.</AbstractText></OtherAbstract>'
    english = '<OtherAbstract Type="PIP"><AbstractText>Yes.</AbstractText></OtherAbstract>'
    item = CITATION.format(pmid=8, title="T.", abstract="", other=french + english)
    bare = (
        f"<MedlineCitationSet>{item}<DeleteCitation><PMID>9</PMID><PMID>10</PMID></DeleteCitation></MedlineCitationSet>"
    )
    documents, report = read(tmp_path, "medline", gzip.compress(bare.encode()))
    assert documents[0].text == "T. Yes."
    assert [(d.id, d.withdrawn) for d in documents[1:]] == [("9", True), ("10", True)]
    assert report.counts["deletions"] == 2


BOMB = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("medline", "<PubmedArticleSet><MedlineCitation>", "is not well-formed XML"),
        ("medline", "", "is not well-formed XML"),
        ("medline", "<a><MedlineCitation/></a>", "without PMID"),
        ("medline", BOMB + "<x><MedlineCitation><PMID>&b;</PMID></MedlineCitation></x>", "defines XML entities"),
        ("medline", '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///x">]><x><MedlineCitation/></x>', "defines XML entities"),
        ("medline", gzip.compress(b"<x></x>" * 50, mtime=0)[:-9], "compressed data is truncated|not well-formed XML"),
        ("jats", "<article><body/></article>", "without front/article-meta"),
        ("bioc-xml", "<collection><document/></collection>", "without id"),
        ("bioc-xml", "<c><document><id>1</id><passage><offset>x</offset></passage></document></c>", "key passages"),
        ("bioc-json", "{", "is not valid JSON"),
        ("bioc-json", "[" * 100_000, "is not valid JSON"),
        ("bioc-json", '{"id": 1}', "key passages: Field required"),
        ("bioc-json", '{"id": 1, "passages": [{"annotations": [{}]}]}', "annotations but no text"),
        ("bern2", '{"text": 3}', "key text"),
        ("bern2", '{"text": "abc", "annotations": [{"span": {"begin": 1, "end": 9}, "mention": "x"}]}', "is outside"),
        ("jsonl", '{"text": "abc"}', "key id"),
        ("jsonl", '{"id": 1, "text": "abc"}\n{"id": 2', "input:2: is not valid JSON"),
        ("jsonl", '{"id": 1, "text": "a\\ud800"}', "half of a surrogate pair"),
        ("jsonl", '{"id": 1, "mentions": [{"start": 0, "end": 1}]}', "mentions without text"),
    ],
)  # fmt: skip
def test_invalid_files_are_refused_in_one_line(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, name, content)
    assert "\n" not in str(caught.value)
    assert "input" in str(caught.value)


def test_jats(tmp_path):
    article = """<article><front><article-meta><article-id pub-id-type="doi">10.1/x</article-id>
    <article-id pub-id-type="pmid">5</article-id><title-group><article-title>T <i>x</i></article-title></title-group>
    <abstract><sec><title>A</title><p>One.</p></sec></abstract></article-meta></front>
    <body><sec><p>Two.</p><fig><caption><p>No.</p></caption></fig></sec><p>Three.</p></body></article>"""
    (document,), _ = read(tmp_path, "jats", article)
    assert document == Document("5", "T x One. Two. Three.")


def jats(body, abstracts="", title="T", namespace=""):
    return f"""<article {namespace}><front><article-meta><article-id pub-id-type="pmid">5</article-id>
    <title-group><article-title>{title}</article-title></title-group>{abstracts}</article-meta></front>
    <body>{body}</body></article>"""


@pytest.mark.parametrize(
    ("body", "text", "skipped"),
    [
        ("<p>A<list><list-item><p>One</p></list-item><list-item><label>2</label><p>Two</p></list-item></list>B</p>",
         "A One Two B", ["label"]),
        (r"<p>If <inline-formula><alternatives><tex-math>\usepackage{x} $x$</tex-math><mml:math "
         'xmlns:mml="http://www.w3.org/1998/Math/MathML"><mml:mi>x</mml:mi></mml:math></alternatives></inline-formula> '
         "falls.</p>", "If falls.", ["alternatives"]),
        ("<p>Seen<disp-formula><mml:math xmlns:mml='m'><mml:mi>y</mml:mi></mml:math></disp-formula>here.</p>",
         "Seen here.", ["disp-formula"]),
        ("<p>Let <inline-formula><italic>x</italic><sub>1</sub></inline-formula> be.</p>", "Let x1 be.", []),
        ("<p>One.<table-wrap><caption><p>No</p></caption><table><tr><td>1</td></tr></table></table-wrap></p>"
         "<p>Two<fig><caption><p>No</p></caption></fig><fn><p>No</p></fn>.</p>", "One. Two .",
         ["table-wrap", "fig", "fn"]),
        ("<p>Gene<sup>a</sup>s<!-- no --><?no no?>, H<sub>2</sub>O<break/>too.</p>", "Geneas, H2O too.", []),
    ],
)  # fmt: skip
def test_what_stands_inside_of_a_paragraph(tmp_path, body, text, skipped):
    (document,), report = read(tmp_path, "jats", jats(body))
    assert document.text == f"T {text}"
    assert report.counts == {"documents": 1, **{f"skipped_{name}": 1 for name in skipped}}


def test_the_abstract_of_sentences_is_read_wherever_it_stands(tmp_path):
    graphical, teaser, real, short = (
        f"<abstract{kind}><p>{text}</p></abstract>"
        for kind, text in ((' abstract-type="graphical"', "G"), (' abstract-type="teaser"', "X"), ("", "Real."),
                           (' abstract-type="summary"', "Short."))
    )  # fmt: skip
    for abstracts, text in (
        (graphical + teaser + real, "T Real."), (real + short, "T Real."), (short + real, "T Real."),
        (graphical + short, "T Short."), (graphical, "T"),
    ):  # fmt: skip
        (document,), report = read(tmp_path, "jats", jats("", abstracts))
        assert document.text == text
        assert report.counts["skipped_abstract"] == abstracts.count("<abstract") - (text != "T")


def test_articles_in_namespaces_are_read(tmp_path):
    article = jats(
        "<p>Two.</p>", "<abstract><p>One.</p></abstract>", namespace='xmlns="https://jats.nlm.nih.gov/ns/1.3/"'
    )
    harvest = f'<OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/"><record>{article}</record></OAI-PMH>'
    assert read(tmp_path, "jats", harvest)[0] == [Document("5", "T One. Two.")]


def test_named_characters_are_resolved_without_their_dtd(tmp_path):
    public = '<!DOCTYPE article PUBLIC "-//NLM//DTD v2.3//EN" "archivearticle.dtd">'
    title = "TNF-&alpha;, &ldquo;<b>a&nbsp;b</b>&rdquo; &mdash; &nosuchname; end"
    (document,), report = read(tmp_path, "jats", public + jats("<p>x &le; y.</p>", title=title))
    assert document.text == "TNF-α, “a b” — &nosuchname; end x ≤ y."
    assert report.counts == {"documents": 1, "unknown_entities": 1}
    xml = '<!DOCTYPE collection SYSTEM "BioC.dtd"><collection><document><id>1</id><passage><offset>0</offset>'
    xml += "<text>TNF-&alpha; rises</text></passage></document></collection>"
    assert read(tmp_path, "bioc-xml", xml)[0] == [Document("1", "TNF-α rises")]
    item = CITATION.format(pmid=7, title="IFN-&gamma;.", abstract="", other="")
    assert read(tmp_path, "medline", citations(item))[0] == [Document("7", "IFN-γ.")]


def test_formulas_of_medline_are_skipped_and_counted(tmp_path):
    formula = '<mml:math xmlns:mml="http://www.w3.org/1998/Math/MathML"><mml:mi>x</mml:mi><mml:mo>2</mml:mo></mml:math>'
    abstract = f"<Abstract><AbstractText>It is {formula} m<sup>2</sup>.</AbstractText></Abstract>"
    item = CITATION.format(pmid=7, title="T.", abstract=abstract, other="")
    (document,), report = read(tmp_path, "medline", citations(item))
    assert document.text == "T. It is m2."
    assert report.counts == {"documents": 1, "skipped_math": 1}


def test_books_are_read_and_counted(tmp_path):
    book = """<PubmedBookArticle><BookDocument><PMID>11</PMID><Book><BookTitle>A book</BookTitle></Book>{title}
    <Abstract><AbstractText>Dyspnea.</AbstractText></Abstract></BookDocument></PubmedBookArticle>"""
    chapter = book.format(title="<ArticleTitle>A chapter</ArticleTitle>")
    item = CITATION.format(pmid=10, title="T.", abstract="", other="")
    xml = f"<PubmedArticleSet><PubmedArticle>{item}</PubmedArticle>{chapter}{book.format(title='')}</PubmedArticleSet>"
    documents, report = read(tmp_path, "medline", xml)
    assert [d.text for d in documents] == ["T.", "A chapter Dyspnea.", "A book Dyspnea."]
    assert (report.counts["documents"], report.counts["documents_of_books"]) == (3, 2)


def test_xml_that_holds_no_document_is_refused_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(xml_elements, "LARGEST_ELEMENT", 1 << 20)
    with pytest.raises(InputError, match="more than 1 MiB without a document"):
        read(tmp_path, "medline", gzip.compress(b"<PubmedArticleSet>" + b"<x/>" * (1 << 20) + b"</PubmedArticleSet>"))


BIOC: dict = {
    "id": 12,
    "passages": [
        {"offset": 0, "text": "β title", "annotations": [
            {"infons": {"identifier": "MESH:D1;MESH:D2", "type": "Disease"}, "text": "title",
             "locations": [{"offset": 2, "length": 5}]}]},
        {"offset": 30, "text": "Later text", "annotations": [
            {"infons": {"MESH": "D3"}, "text": "later", "locations": [{"offset": 30, "length": 5}]},
            {"infons": {"identifier": "-"}, "text": "x", "locations": [{"offset": 36, "length": 4}]},
            {"infons": {"identifier": 9606, "type": "Species"}, "text": "split",
             "locations": [{"offset": 30, "length": 2}, {"offset": 36, "length": 1}]}]},
    ],
}  # fmt: skip


def check_bioc(document, report):
    assert document.id == "12"
    assert document.text == "β title Later text"
    strings = [document.text[m.start : m.end] for m in document.mentions]
    assert strings == ["title", "Later", "text", "La", "t"]
    assert document.mentions[0].ids == ("MESH:D1", "MESH:D2")
    assert document.mentions[1].ids == ("MESH:D3",)
    assert document.mentions[2].ids == ()
    assert document.mentions[3].ids == ("9606",)
    assert report.counts["surface_mismatches"] == 1


@pytest.mark.parametrize(
    "wrap",
    [
        lambda d: d,
        lambda d: {"PubTator3": [d]},
        lambda d: {"documents": [d]},
        lambda d: [d],
        lambda d: [{"bioctype": "BioCCollection", "documents": [d]}],
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_bioc_json(tmp_path, wrap, indent):
    (document,), report = read(tmp_path, "bioc-json", json.dumps(wrap(BIOC), indent=indent))
    check_bioc(document, report)


def test_bioc_xml(tmp_path):
    def annotation(item):
        infons = "".join(f'<infon key="{key}">{value}</infon>' for key, value in item["infons"].items())
        places = "".join(
            '<location offset="{offset}" length="{length}"/>'.format(**place) for place in item["locations"]
        )
        return f"<annotation>{infons}<text>{item['text']}</text>{places}</annotation>"

    passages = "".join(
        f"<passage><offset>{p['offset']}</offset><text>{p['text']}</text>"
        f"{''.join(map(annotation, p['annotations']))}</passage>"
        for p in BIOC["passages"]
    )
    xml = f"<collection><document><id>12</id>{passages}</document></collection>"
    (document,), report = read(tmp_path, "bioc-xml", xml)
    check_bioc(document, report)


SENTENCES = {"id": 1, "passages": [
    {"offset": 0, "sentences": [{"offset": 0, "text": "Nausea and fatigue.", "annotations": [
        {"infons": {"identifier": "C1"}, "text": "Nausea", "locations": [{"offset": 0, "length": 6}]}]}]},
    {"offset": 20, "text": "Rare dyspnea.", "sentences": [], "annotations": [
        {"infons": {"identifier": "C2"}, "text": "dyspnea", "locations": [{"offset": 25, "length": 7}]}]},
    {"offset": 40, "annotations": [
        {"infons": {"identifier": "C4"}, "text": "Cough", "locations": [{"offset": 50, "length": 5}]}],
     "sentences": [{"offset": 50, "text": "Cough."}, {"offset": 40, "text": "No fever.", "annotations": [
        {"infons": {"identifier": "C3"}, "text": "fever", "locations": [{"offset": 43, "length": 5}]}]}]}]}  # fmt: skip


def test_bioc_whose_text_is_in_sentences(tmp_path):
    """Annotations of a passage and of its sentences have offsets in the document; sentences come in text order."""
    (document,), report = read(tmp_path, "bioc-json", json.dumps(SENTENCES))
    assert document.text == "Nausea and fatigue. Rare dyspnea. No fever. Cough."
    assert [(m.text, document.text[m.start : m.end], *m.ids) for m in document.mentions] == [
        ("Nausea", "Nausea", "C1"), ("dyspnea", "dyspnea", "C2"), ("fever", "fever", "C3"), ("Cough", "Cough", "C4"),
    ]  # fmt: skip
    assert report.counts["surface_mismatches"] == 0
    xml = """<collection><document><id>1</id><passage><offset>20</offset><sentence><offset>20</offset>
    <text>Dyspnea.</text><annotation><infon key="CUI">C2</infon><location offset="20" length="7"/><text>Dyspnea</text>
    </annotation></sentence></passage></document></collection>"""
    (document,), _ = read(tmp_path, "bioc-xml", xml)
    assert [(document.text[m.start : m.end], *m.ids) for m in document.mentions] == [("Dyspnea", "C2")]


@pytest.mark.parametrize(
    ("infons", "ids"),
    [
        ({"CUI": "C1"}, ("C1",)),
        ({"UMLS": "C1;C2", "annotator": "x"}, ("C1", "C2")),
        ({"NCBI Gene identifier": "7157"}, ("NCBIGENE:7157",)),
        ({"MESH": "D1", "identifier": "-"}, ("MESH:D1",)),
        ({"mesh": "MESH:D1"}, ("MESH:D1",)),
        ({"citation_text": "1"}, ()),
    ],
)
def test_keys_of_bioc_identifiers(tmp_path, infons, ids):
    annotations = [
        {"infons": infons, "text": "ab", "locations": [{"offset": 0, "length": 2}]},
        {"infons": infons, "text": "", "locations": [{"offset": 1, "length": 0}]},
    ]
    value = {"id": 1, "passages": [{"text": "abc", "annotations": annotations}]}
    (document,), report = read(tmp_path, "bioc-json", json.dumps(value))
    assert [m.ids for m in document.mentions] == [ids]
    assert report.counts["mentions_of_length_zero"] == 1


def test_failed_answers_of_bern2_are_counted(tmp_path):
    answers = [{"pmid": "1", "text": "Nausea"}, {"pmid": "2", "error": "timeout"}, {"text": "", "error_message": "x"}]
    documents, report = read(tmp_path, "bern2", json.dumps(answers))
    assert [d.id for d in documents] == ["1"]
    assert report.counts == {"documents": 1, "responses_with_an_error": 2}
    with pytest.raises(InputError, match="response 1: key text: is missing"):
        read(tmp_path, "bern2", '{"pmid": "2"}')


def test_bern2_several_ids_nan_and_no_id(tmp_path):
    first = (
        '{"id": ["mesh:D1", "OMIM:2"], "prob": NaN, "mention": "abc", "obj": "disease", "span": {"begin": 0, "end": 3}}'
    )
    second = '{"id": ["CUI-less"], "mention": "d", "obj": "gene", "span": {"begin": 4, "end": 5}}'
    answer = f'{{"annotations": [{first}, {second}], "text": "abc d"}}'
    documents, _ = read(tmp_path, "bern2", f"{answer}\n{answer}\n")
    assert [d.id for d in documents] == ["input_1", "input_2"]
    assert [m.ids for m in documents[0].mentions] == [("mesh:D1", "OMIM:2"), ()]


def test_json_lines_of_plain_text_spans_and_scispacy(tmp_path):
    lines = [
        {"id": "a", "text": "Heart failure."},
        {"pmid": 2, "title": "Heart", "abstract": "failure", "spans": [{"start": 0, "end": 13, "id": "C0000001"}]},
        {"id": 3, "text": "HF", "ents": [{"start": 0, "end": 2, "label": "X", "kb_ents": [["C2", 0.8], ["C1", 0.9]]}]},
    ]
    documents, _ = read(tmp_path, "jsonl", "\n".join(map(json.dumps, lines)))
    assert [d.text for d in documents] == ["Heart failure.", "Heart failure", "HF"]
    assert [[m.ids for m in d.mentions] for d in documents] == [[], [("C0000001",)], [("C1",)]]
    assert documents[2].mentions[0].type == "X"


@pytest.mark.parametrize(
    ("mention", "ids"),
    [
        ({"start": 0, "end": 2, "label": "X", "id": "", "kb_id": "C1"}, ("C1",)),
        ({"start": 0, "end": 2, "cui": ["C1", "C2"]}, ("C1", "C2")),
        ({"start": 0, "end": 2, "ids": [7157]}, ("7157",)),
        ({"start": 0, "end": 2, "id": 7, "cui": None, "kb_ents": []}, ("7",)),
        ({"start_char": 0, "end_char": 2, "cui": "C1"}, ("C1",)),
        ([0, 2, "C1"], ("C1",)),
    ],
)
def test_forms_of_spans(tmp_path, mention, ids):
    (document,), _ = read(tmp_path, "jsonl", json.dumps({"id": 1, "text": "HF", "ents": [mention]}))
    assert [(m.start, m.end, m.ids) for m in document.mentions] == [(0, 2, ids)]


def test_labels_of_doccano_are_mentions_and_labels_of_texts_are_not(tmp_path):
    lines = [{"id": 1, "text": "HF", "label": [[0, 2, "C1"]]}, {"id": 2, "text": "HF", "label": ["sick"]}]
    documents, _ = read(tmp_path, "jsonl", "\n".join(map(json.dumps, lines)))
    assert [[m.ids for m in d.mentions] for d in documents] == [[("C1",)], []]


def test_mentions_of_one_file_are_joined_with_the_text_of_another(tmp_path):
    rows = tmp_path / "links.tsv"
    rows.write_text("id\tstart\tend\tmention\ttype\tids\n7\t0\t5\theart\tDisease\tC1\textra\n8\t0\t1\tx\tDisease\tC2\n")
    report = ReadReport()
    texts = [Document("6", "Nothing"), Document("7", "Heart")]
    documents = list(join_mentions(iter(texts), rows, report))
    assert [len(d.mentions) for d in documents] == [0, 1]
    assert report.counts["documents_without_text"] == 1
    with pytest.raises(InputError, match="no text has the id of one of its 2 documents"):
        list(join_mentions(iter([Document("1", "x")]), rows, ReadReport()))
    with pytest.raises(InputError, match=r"links.tsv:2: .*is outside"):
        list(join_mentions(iter([Document("7", "Hea")]), rows, ReadReport()))


def test_real_xml_and_json(real_data):
    def count(name, path):
        report = ReadReport()
        documents = list(read_documents(name, real_data / path, report))
        return len(documents), report.counts

    assert count("medline", "pubmed_xml/medsamp2006.xml") == (88, {"documents": 88, "documents_without_abstract": 32})
    for number in (4, 5, 6, 7):
        assert count("medline", f"pubmed_xml/pubmed{number}.xml")[0] == 1
    documents, counts = count("bioc-xml", "annotation_formats/pubtator_central_bioc.xml.gz")
    assert (documents, counts["mentions"], counts["surface_mismatches"]) == (32, 6784, 0)
    files = sorted((real_data / "annotation_formats" / "pubtator3_biocjson").glob("*.json"))
    totals = [count("bioc-json", path)[1] for path in files]
    assert (len(files), sum(c["mentions"] for c in totals), sum(c["surface_mismatches"] for c in totals)) == (8, 170, 0)
    assert count("bern2", "annotation_formats/bern2_json/response_0.json")[1]["mentions"] == 2


def test_the_real_file_with_rows_of_another_text_is_refused(real_data):
    texts = read_documents("pubtator", real_data / "corpora/medmentions_st21pv_train.pubtator.txt.gz", ReadReport())
    rows = real_data / "annotation_formats/bern2_medmentions_train.tsv.gz"
    with pytest.raises(InputError, match=r"is outside|differ from the text"):
        list(join_mentions(texts, rows, ReadReport()))


def test_real_rows_without_text_join_the_text_of_another_file(real_data):
    folder, report = real_data / "annotation_formats/tmvar_500docs", ReadReport()
    texts = read_documents("pubtator", folder / "raw.txt.gz", ReadReport())
    assert len(list(join_mentions(texts, folder / "bern.txt.gz", report))) == 500
    assert (report.counts["mentions"], report.counts["surface_mismatches"]) == (17580, 1)
