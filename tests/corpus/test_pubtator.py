import gzip
import time

import pytest

from bali_ds import files
from bali_ds.corpus import pubtator
from bali_ds.corpus.document import ReadReport
from bali_ds.corpus.pubtator import split_ids
from bali_ds.corpus.readers import read_documents
from bali_ds.errors import InputError

RECORD = "1|t|Naïve β-cell loss.\n1|a|In T1D, β-cells die.\n"


def read(tmp_path, text, raw=False):
    path = tmp_path / "corpus.txt"
    path.write_bytes(text if raw else text.encode())
    report = ReadReport()
    return list(read_documents("pubtator", path, report)), report


@pytest.mark.parametrize(
    ("column", "ids"),
    [
        ("D003110", ("D003110",)),
        ("MESH:D003110", ("MESH:D003110",)),
        ("UMLS:C0000001", ("UMLS:C0000001",)),
        ("D003110|D009369", ("D003110", "D009369")),
        ("D003110+D009369", ("D003110", "D009369")),
        ("6103;2706", ("6103", "2706")),
        ("omim:1;MESH:D1", ("omim:1", "MESH:D1")),
        ("C0000001,C0000002", ("C0000001", "C0000002")),
        ("D1|-1", ("D1",)),
        ("D1|D1", ("D1",)),
        ("NCBI Gene:1513,dbSNP:p|SUB|G|303|E", ("NCBI Gene:1513", "dbSNP:p|SUB|G|303|E")),
        ("", ()),
        ("-", ()),
        ("-1", ()),
        ("CUI-less", ()),
    ],
)
def test_identifiers_of_a_column(column, ids):
    assert split_ids(column) == ids


def test_mentions_in_code_points_over_title_space_abstract(tmp_path):
    rows = "1\t6\t12\tβ-cell\tCell\tC0000001\n1\t22\t25\tT1D\tDisease\tMESH:D003922|D003924\tinsulin|diabetes\n"
    (document,), report = read(tmp_path, RECORD + rows)
    assert document.id == "1"
    assert document.text == "Naïve β-cell loss. In T1D, β-cells die."
    assert [document.text[m.start : m.end] for m in document.mentions] == ["β-cell", "T1D"]
    assert document.mentions[1].ids == ("MESH:D003922", "D003924")
    assert document.mentions[1].type == "Disease"
    assert report.counts == {"documents": 1, "mentions": 2}


@pytest.mark.parametrize(
    "row",
    ["1\t6\t12\tβ-cell\tCell", "1\t6\t12\tβ-cell\tCell\t", "1\t6\t12\tβ-cell\tCell\t-1", "1\t6\t12\tβ-cell\tCell\t-\t"],
)
def test_unlinked_mentions_have_no_ids(tmp_path, row):
    (document,), report = read(tmp_path, RECORD + row + "\n")
    assert document.mentions[0].ids == ()
    assert report.counts["mentions_unlinked"] == 1


def test_relation_rows_are_counted_and_dropped(tmp_path):
    (document,), report = read(tmp_path, RECORD + "1\tCID\tD1\tD2\n")
    assert document.mentions == ()
    assert report.counts["relations"] == 1


def test_records_need_no_blank_line_between_them_and_any_line_end_will_do(tmp_path):
    text = "\ufeff1|t|One\r\n1|a|Alpha\r\n2|t|Two\r\n\r\n\r\n3|t|Three | and | bars\r\n3|a|"
    documents, report = read(tmp_path, text)
    assert [(d.id, d.text) for d in documents] == [("1", "One Alpha"), ("2", "Two"), ("3", "Three | and | bars ")]
    assert report.counts["documents_without_abstract"] == 1


def test_the_same_id_twice_gives_two_documents(tmp_path):
    documents, _ = read(tmp_path, "1|t|One\n1|a|A\n\n1|t|Two\n1|a|B\n")
    assert [d.text for d in documents] == ["One A", "Two B"]


def test_gzip_is_detected_from_the_content(tmp_path):
    (document,), _ = read(tmp_path, gzip.compress(RECORD.encode()), raw=True)
    assert document.id == "1"


def test_documents_without_text_are_counted(tmp_path):
    documents, report = read(tmp_path, RECORD + "\n2\t0\t3\tabc\tCell\tC1\n")
    assert len(documents) == 1
    assert report.counts["documents_without_text"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RECORD + "1\t30\t60\tdie\tCell\tC1\n", r"corpus.txt:3: mention 'die' at 30-60 is outside"),
        (RECORD + "1\t-3\t2\tdie\tCell\tC1\n", r"corpus.txt:3: mention 'die' at -3-2 is outside"),
        (RECORD + "1\t5\t4\t\tCell\tC1\n", r"corpus.txt:3: mention '' at 5-4 is outside"),
        (RECORD + "1\t5\tx\tdie\tCell\tC1\n", r"corpus.txt:3: offsets '5' and 'x' are not two integers"),
        (RECORD + "nonsense\n", r"corpus.txt:3: is not id\|t\|title"),
        (RECORD + "1|a|again\n", r"corpus.txt:3: a second abstract of document 1"),
        ("1\t0\t3\tabc\tCell\tC1\n", r"corpus.txt: has mentions but no text lines"),
        (RECORD + "1\t0\t5\tother\tCell\tC1\n", r"corpus.txt: 1 of 1 mentions differ"),
    ],
)
def test_invalid_lines_are_refused_with_file_and_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_another_encoding_and_a_truncated_gzip_are_named(tmp_path):
    with pytest.raises(InputError, match=r"corpus.txt:\d+: is not UTF-8"):
        read(tmp_path, RECORD.encode("latin-1", "replace"), raw=True)
    with pytest.raises(InputError, match="compressed data is truncated or damaged"):
        read(tmp_path, gzip.compress(RECORD.encode() * 50)[:-12], raw=True)


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(InputError, match="corpus format 'pubmed': is unknown; use one of pubtator"):
        read_documents("pubmed", tmp_path, ReadReport())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("corpora/medmentions_st21pv_train.pubtator.txt.gz", {"documents": 2635, "mentions": 122001}),
        ("corpora/bc5cdr/CDR_train.PubTator.txt.gz", {"documents": 500, "mentions": 9385, "relations": 1038}),
        ("corpora/bc5cdr/CDR_dev.PubTator.txt.gz", {"documents": 500, "mentions": 9591, "relations": 1012}),
        ("corpora/medmentions_full_sample_train_only.pubtator.txt", {"documents": 8, "mentions": 615}),
        ("corpora/ncbi_disease/NCBIdevelopset_corpus.txt.gz", {"documents": 100, "mentions": 787}),
        ("annotation_formats/tmvar_500docs/raw.txt.gz", {"documents": 500, "mentions": 0}),
        ("corpora/ncbi_disease/NCBItrainset_corpus.txt.gz", {"mentions": 5145, "surface_mismatches": 1}),
        ("annotation_formats/tmvar_500docs/goldstandard.txt.gz", {"documents": 500, "mentions": 7837}),
        ("annotation_formats/tmvar_500docs/pubtator.txt.gz", {"documents": 500, "mentions": 10032}),
        ("annotation_formats/tmvar_500docs/bent.txt.gz", {"documents": 500, "documents_without_abstract": 500}),
        ("annotation_formats/tmvar_500docs/hunflair2.txt.gz", {"mentions": 11356, "surface_mismatches": 1725}),
        ("annotation_formats/bioconcepts2pubtator_offsets.sample.gz", {"mentions": 7537, "mentions_of_placeholder": 2}),
    ],
)
def test_real_files_give_the_expected_counts(real_data, name, expected):
    report = ReadReport()
    for document in read_documents("pubtator", real_data / name, report):
        assert all(0 <= m.start < m.end <= len(document.text) for m in document.mentions)
    assert {key: report.counts[key] for key in expected} == expected
    if "surface_mismatches" not in expected and "bent" not in name:
        assert not report.counts["surface_mismatches"]


def test_many_identifiers_are_split_in_linear_time():
    """60,000 identifiers took a minute when each was compared with all before it."""
    ids = [f"D{number:06d}" for number in range(60_000)]
    started = time.process_time()
    assert list(split_ids(";".join(ids + ids))) == ids
    assert time.process_time() - started < 5


def test_a_mention_of_length_zero_is_dropped_and_counted(tmp_path):
    (document,), report = read(tmp_path, RECORD + "1\t5\t5\t\tCell\tC1\n1\t0\t5\tNaïve\tCell\tC1\n")
    assert [m.text for m in document.mentions] == ["Naïve"]
    assert report.counts["mentions_of_length_zero"] == 1


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("MOST_EMPTY_LINES", "\n", r"corpus.txt:\d+: more than 99 empty lines in a row"),
        ("_MOST_ROWS", "1\t0\t5\tNaïve\tCell\tC1\n", r"corpus.txt:\d+: document 1 has more than 99 rows"),
    ],
)
def test_lines_without_end_are_refused(tmp_path, monkeypatch, name, line, message):
    monkeypatch.setattr(files if name == "MOST_EMPTY_LINES" else pubtator, name, 99)
    read(tmp_path, RECORD + 99 * line + RECORD.replace("1|", "2|"))
    with pytest.raises(InputError, match=message):
        read(tmp_path, RECORD + 100 * line)
