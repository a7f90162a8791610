"""Every family of encoders and tokenizers through all commands: build, train, export, encode, link, evaluate."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModel, AutoModelForMaskedLM

from bali_ds.checkpoint.zero_reader import read_checkpoint
from bali_ds.cli import main
from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.inference.encoder import load
from bali_ds.model.text_encoder import load_text_encoder
from tests.conftest import REPOSITORY, run_ranks
from tests.families import FAMILIES, POSITIONS, first_documents, vector_by_hand, write_family

pytestmark = [pytest.mark.system, pytest.mark.slow]

TEXTS = ["Heart failure", "β-blockers in Sjögren’s disease (IL-2)", "Nausea after chemotherapy. " * 60]
STEPS = 3


@pytest.fixture(scope="module")
def runs(sample, tmp_path_factory) -> Path:
    """The runs of all families, trained for three steps, exported and evaluated, below `runs`."""
    folder = tmp_path_factory.mktemp("families")
    first_documents(folder / "corpus.pubtator", 60)
    (folder / "dictionary.txt").write_text("C1||heart failure\nC2||nausea\nC3||Sjögren disease\n")
    (folder / "queries.tsv").write_text("mention\tcui\nheart failure\tC1\nNausea\tC2\nSjogren\tC3\n")
    for name in FAMILIES:
        encoder = write_family(name, folder / "encoders" / name)
        build = f"shards build --graph {sample.graph} --corpus pubtator:{folder}/corpus.pubtator --tokenizer {encoder} "
        build += f"--max-tokens {POSITIONS} --max-name-tokens 16 --validation 0.1 --out {folder}/shards/{name}"
        assert main(build.split()) == 0
        recipe = sample.recipe(
            folder / "runs",
            name=name,
            text_encoder={"path": str(encoder), "weights": "pretrained"},
            data={"graph": sample.graph, "shards": f"{folder}/shards/{name}", "workers": 0},
            batch={"passages": 8},
            steps=STEPS,
            evaluation={"linking": {"dictionary": folder / "dictionary.txt", "queries": folder / "queries.tsv"}},
        )
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    run_ranks(1, REPOSITORY / "tests/system/family_ranks.py", folder, timeout=400)
    return folder / "runs"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_goes_the_whole_way(name, runs, tmp_path, capsys):
    run, export = runs / name, tmp_path / "export"
    assert {"untrained", "trained"} <= json.loads((run / "evaluation.json").read_text())["linking"].keys()
    assert main(["export", str(run), "--out", str(export), "--dtype", "float32"]) == 0

    # the trained weights, read from the checkpoint by their names in training
    trained = load_text_encoder(str(run / "encoder"), seed=0, weights="random", attention="sdpa").eval()
    stored = read_checkpoint(run / f"checkpoints/step-{STEPS:08d}")
    weights = {key.removeprefix("text."): value.tensor() for key, value in stored.items() if key.startswith("text.")}
    trained.load_state_dict(weights)
    tokenizer = Tokenizer.load(runs.parent / "encoders" / name)
    longest = load(export).max_tokens
    expected = torch.stack([vector_by_hand(trained.encoder, tokenizer, text, longest) for text in TEXTS])

    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    encode = ["encode", "--model", str(export), "--out", str(tmp_path / "vectors.npy"), str(tmp_path / "texts.txt")]
    assert main(encode) == 0
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "vectors.npy")), expected, atol=1e-5, rtol=1e-4)
    plain = AutoModel.from_pretrained(export).eval()
    torch.testing.assert_close(vector_by_hand(plain, tokenizer, TEXTS[0], longest), expected[0], atol=1e-5, rtol=1e-4)
    rows = torch.tensor([[tokenizer.cls_id, *tokenizer.encode(TEXTS[1]).ids.tolist(), tokenizer.sep_id]])
    with torch.no_grad():
        logits = AutoModelForMaskedLM.from_pretrained(export).eval()(input_ids=rows).logits
        own = trained.head(trained.encoder(input_ids=rows).last_hidden_state)
    torch.testing.assert_close(logits, own, atol=1e-4, rtol=1e-4)

    dictionary, queries = runs.parent / "dictionary.txt", runs.parent / "queries.tsv"
    capsys.readouterr()
    evaluate = f"evaluate linking --model {export} --dictionary {dictionary} --queries {queries} --json"
    assert main(evaluate.split()) == 0
    found = json.loads(capsys.readouterr().out)["all"]
    assert (found["n"], found["acc@5"]["value"]) == (3, 1.0)
    assert found["acc@1"]["value"] >= 1 / 3  # the first mention is a name


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FAMILIES)
def test_sentence_transformers_gives_the_same_vectors(name, runs):
    library = pytest.importorskip("sentence_transformers")
    encoder = load(runs / name / "export")
    found = library.SentenceTransformer(str(runs / name / "export"), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(
        found, encoder.encode(TEXTS), atol=2e-3
    )  # it computes in the half precision of the export
