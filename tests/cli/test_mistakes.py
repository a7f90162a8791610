"""Typical mistakes on the command line: status 2, one line on stderr, and the remedy in it."""

import pytest

from bali_ds.cli import main
from tests.conftest import REPOSITORY

SAMPLE = REPOSITORY / "shards/sample"
MISTAKES = [
    # commands and options
    ("grph build", "did you mean graph?"),
    ("graph bild", "did you mean build?"),
    ("evaluate linkin", "did you mean linking?"),
    ("export run --outt x", "did you mean --out?"),
    ("graph build --obo {file} --raw-relatons --out o", "did you mean --raw-relations?"),
    ("link --mdel m --graph g f", "did you mean --model?"),
    ("graph search {graph} heart attack", "put quotes around"),
    ("shards build --graph {graph}", "missing: --corpus, --tokenizer, --out"),
    ("link --model m mentions", "--dictionary --graph is required"),
    ("link --model m --graph g --dictionary d mentions", "not allowed with argument"),
    ("link --model m --graph g --top many mentions", "'many' is not a whole number"),
    ("link --model m --graph g --in-context --context-share much mentions", "'much' is not a number"),
    ("link --model m --graph g --context-share 0.3 mentions", "--context-share: only with --in-context"),
    ("link --model m --graph g --in-context --graph-share 0.3 mentions", "--graph-share: only with --with-graph"),
    ("link --model m --graph g --in-context --graph-index d mentions", "--graph-index: only with --with-graph"),
    ("link --model m --graph g --in-context --memory-bonus 0 mentions", "--memory-bonus: only with --memory"),
    ("export run --out x --start-share 0.5", "--start-share: only with --average-with"),
    ("plan sample --price 2", "--price: only with --gpus"),
    ("plan sample --gpus 1 --passages many", "'many' is not a whole number"),
    ("export run --out x --dtype float8", "did you mean float"),
    # recipes
    ("train", "no recipe is given"),
    ("train smple", "did you mean sample?"),
    ("train sample --batch.passages 128", "batch.passages=VALUE"),
    ("train sample batch.pasages=128", "did you mean passages?"),
    ("train sample deepspeed=zero4", "did you mean zero"),
    ("plan sample batch.passages=-1", "batch.passages: Input should be greater than or equal to 1"),
    ("plan sample batch.passages", "is not an override; write key=value"),
    ("plan sample --ranks 0", "must be at least 1"),
    ("train sample --hostfile nowhere", "nowhere: cannot be read: No such file or directory"),
    ("train sample --ranks 2 --hostfile h", "not allowed with argument --ranks"),
    ("init {file}", "exists already"),
    # inputs
    ("graph build --out o", "no sources given; pass --rrf"),
    ("graph build --rrf nowhere --out o", "nowhere: contains no MRCONSO.RRF or MRCONSO.RRF.gz; pass the META folder"),
    ("graph build --obo {file} --out {folder}", "is not part of a graph by bali-ds; name another --out"),
    ("graph build --obo {file} --tsv-preset primekgg --out o", "did you mean primekg?"),
    ("graph fetch hp --out hp.obo", "did you mean hpo?"),
    ("graph stats nowhere", "nowhere: is not a graph (manifest.json is missing); build one with bali-ds graph build"),
    (
        "graph show {graph} C9999999",
        "C9999999: is not a concept of {graph}; use an identifier or a code of its sources",
    ),
    ("shards build --graph {graph} --corpus pubtatr:x --tokenizer {encoder} --out o", "did you mean pubtator?"),
    ("shards build --graph {graph} --corpus corpus.txt --tokenizer {encoder} --out o", "FORMAT:PATH"),
    ("shards build --graph {graph} --corpus pubtator:nowhere --tokenizer {encoder} --out o", "nowhere: is not a file"),
    ("link --model {run} --graph {graph} mentions", "did you mean {run}/export?"),
    ("link --model nowhere --graph {graph} mentions", "nowhere: is not a model directory"),
    ("encode --model {run}/export --device gpu --out v.npy mentions", "use auto, cpu or cuda"),
    ("encode --model {run}/export --device cuda --out v.npy mentions", "torch finds no GPU"),
    ("report {folder}", "{folder}: is not a run directory: recipe.yaml does not exist; pass runs/NAME"),
]


@pytest.fixture
def places(tmp_path, graph_directory, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "file").write_text("format-version: 1.2\n\n[Term]\nid: D:1\nname: x\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/thesis.tex").touch()
    (tmp_path / "run/export").mkdir(parents=True)
    (tmp_path / "run/export/config.json").write_text("{}")
    (tmp_path / "mentions").write_text("heart attack\n")
    for name in ("corpus.txt", "h"):
        (tmp_path / name).touch()
    return {"file": "file", "folder": "folder", "run": "run", "graph": graph_directory, "encoder": SAMPLE / "encoder"}


@pytest.mark.parametrize(("line", "remedy"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_gets_one_line_with_its_remedy(line, remedy, places, capsys):
    try:
        status = main(line.format(**places).split())
    except SystemExit as exiting:
        status = exiting.code
    said = capsys.readouterr().err
    assert status == 2, said
    assert said.count("\n") == 1, said
    assert said.startswith("bali-ds")
    assert remedy.format(**places) in said
