"""Text readers of graphs and passages refuse pipes and devices, and never wait for them."""

import os

import pytest

from bali_ds.cli import main
from bali_ds.corpus.readers import ReadReport, read_documents
from bali_ds.errors import InputError


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("MRCONSO.RRF", ["--rrf", "{folder}"]),
        ("disease.obo", ["--obo", "{folder}/disease.obo"]),
        ("edges.tsv", ["--edges", "{folder}/edges.tsv"]),
        ("desc.xml", ["--mesh", "{folder}/desc.xml"]),
    ],
)
def test_a_pipe_in_place_of_a_source_of_a_graph_is_one_line(tmp_path, capsys, name, arguments):
    os.mkfifo(tmp_path / name)
    given = [each.format(folder=tmp_path) for each in arguments]
    assert main(["graph", "build", *given, "--out", str(tmp_path / "graph")]) == 2
    error = capsys.readouterr().err
    assert f"{name}: cannot be read: it is not a regular file" in error
    assert error.count("\n") == 1


@pytest.mark.timeout(20)
@pytest.mark.parametrize("format_name", ["pubtator", "medline", "jats", "bioc-xml", "bioc-json", "bern2", "jsonl"])
def test_a_pipe_in_place_of_a_corpus_is_one_line(tmp_path, format_name):
    path = tmp_path / "corpus.xml"
    os.mkfifo(path)
    with pytest.raises(InputError, match=r"corpus\.xml: cannot be read: it is not a regular file"):
        list(read_documents(format_name, path, ReadReport()))
