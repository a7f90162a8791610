"""Export of a run with LoRA as an adapter: the base with it gives the vectors of the merged export."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, BertConfig

from bali_ds.cli import main
from bali_ds.errors import InputError
from bali_ds.export.export_run import export_run
from bali_ds.inference.encoder import load
from bali_ds.model.build_model import build_aligner
from tests.card_snippet import vectors_by_the_card
from tests.model.decoders import write_decoder
from tests.model.test_export_of_kinds import write_run

pytest.importorskip("peft")
TEXTS = ["renal failure", "acute nausea and vomiting"]


@pytest.fixture(params=["llama", "bert"])
def recipe(request, sample, tmp_path):
    """A run with LoRA whose updates are not zero."""
    torch.manual_seed(3)
    base, objective = tmp_path / "base", {}
    if request.param == "bert":
        tokenizer = AutoTokenizer.from_pretrained(sample.encoder)
        shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        AutoModelForMaskedLM.from_config(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(base)
        tokenizer.save_pretrained(base)
    else:
        write_decoder(base, "llama", TEXTS)
        objective = {"objective": {"masked_language_model": {"weight": 0.0}}}
    encoder = {"path": str(base), "weights": "pretrained", "lora": {"rank": 2, "alpha": 8}}
    encoder["pooling"] = "last" if request.param == "llama" else "mean"
    recipe = sample.recipe(tmp_path / "runs", text_encoder=encoder, **objective)
    aligner = build_aligner(recipe, 10).eval()
    for name, parameter in aligner.text.named_parameters():
        if ".lora_" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    write_run(recipe, aligner)
    return recipe


def test_the_base_with_the_adapter_gives_the_vectors_of_the_merged_export(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the adapter names a base that is not on the Hub by its folder alone
    assert main(f"export {recipe.directory} --out adapter --adapter --dtype float32 --json".split()) == 0
    export_run(recipe.directory, tmp_path / "merged", "float32")
    merged = load(tmp_path / "merged")
    expected = merged.encode(TEXTS)
    np.testing.assert_allclose(vectors_by_the_card(tmp_path / "adapter", TEXTS), expected, atol=1e-5)
    base = AutoModel.from_pretrained("base", dtype=torch.float32)
    plain = base(torch.tensor([[5, 6, 7]])).last_hidden_state
    assert (plain - merged.model(torch.tensor([[5, 6, 7]])).last_hidden_state).abs().max() > 1e-2
    assert not (tmp_path / "adapter/config.json").exists()
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "adapter").glob("*.json"))
    rank = json.loads((tmp_path / "adapter/adapter_config.json").read_text())["r"]
    assert rank == 2
    sentence_transformers = pytest.importorskip("sentence_transformers")
    theirs = sentence_transformers.SentenceTransformer("adapter", device="cpu")
    np.testing.assert_allclose(theirs.encode(TEXTS), expected, atol=1e-5)
    with pytest.raises(InputError, match="holds an adapter of peft"):
        load("adapter")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora": None}, r"the run has no text_encoder\.lora"),
        ({"weights": "random"}, r"text_encoder\.weights of the run changes the encoder itself"),
        ({"layer": 1}, r"text_encoder\.layer of the run"),
        ({"bidirectional": True}, r"text_encoder\.bidirectional of the run"),
    ],
)
def test_what_an_adapter_cannot_hold_is_refused(sample, tmp_path, changes, said):
    encoder = {"path": str(sample.encoder), "weights": "random", "lora": {"rank": 2}}
    recipe = sample.recipe(tmp_path / "runs", text_encoder=encoder)
    write_run(recipe, build_aligner(recipe, 10))
    text = recipe.text_encoder.model_copy(update={"weights": "pretrained", **changes})
    (recipe.directory / "recipe.yaml").write_text(
        recipe.model_copy(update={"text_encoder": text}).model_dump_json()  # JSON is YAML
    )
    with pytest.raises(InputError, match=f"--adapter: {said}"):
        export_run(recipe.directory, tmp_path / "out", adapter=True)
    assert not (tmp_path / "out").exists()
