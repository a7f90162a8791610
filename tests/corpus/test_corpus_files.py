import pytest

from bali_ds.corpus.corpus_files import SUFFIXES, corpus_files
from bali_ds.corpus.readers import READERS
from bali_ds.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """Files as they lie in PubMed's baseline, with checksums and pages between them."""
    names = [
        "n0002.xml.gz",
        "n0001.xml.gz",
        "n0001.xml.gz.md5",
        "README.txt",
        ".hidden.xml",
        "more/n0003.xml",
        "x.json",
    ]
    (tmp_path / "base/more").mkdir(parents=True)
    for name in [*names, "x.json"]:
        (tmp_path / "base" / name).write_bytes(b"")
    return tmp_path / "base"


def found(folder, entry):
    name, paths = corpus_files(entry.replace("DIR", str(folder)))
    return name, [str(path.relative_to(folder)) for path in paths]


def test_files_folders_and_patterns(folder, monkeypatch):
    assert found(folder, "medline:DIR") == ("medline", ["more/n0003.xml", "n0001.xml.gz", "n0002.xml.gz"])
    assert found(folder, "bioc-json:DIR") == ("bioc-json", ["x.json"])
    assert found(folder, "medline:DIR/*.xml.gz") == ("medline", ["n0001.xml.gz", "n0002.xml.gz"])
    assert found(folder, "medline:DIR/n000[2-9].xml*") == ("medline", ["n0002.xml.gz"])
    assert found(folder, "jsonl:DIR/no/such/file") == ("jsonl", ["no/such/file"])
    monkeypatch.chdir(folder)
    assert [str(path) for path in corpus_files("medline:*.gz")[1]] == ["n0001.xml.gz", "n0002.xml.gz"]
    assert len(corpus_files("medline:../base")[1]) == 3
    (folder / "odd[1].xml").write_bytes(b"")
    assert found(folder, "jats:DIR/odd[1].xml") == ("jats", ["odd[1].xml"])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("nonsense", "write FORMAT:PATH"),
        ("medline:", "write FORMAT:PATH"),
        ("medlin:DIR", "did you mean medline"),
        ("bern2:DIR/more", r"no file is there; a folder needs files that end in .json"),
        ("bern2:DIR/*.zip", "no file is there"),
    ],
)
def test_mistakes(folder, entry, message):
    with pytest.raises(InputError, match=message):
        found(folder, entry)


def test_every_format_has_its_suffixes():
    assert SUFFIXES.keys() == READERS.keys()
