"""Every family of encoders and tokenizers, without training: what it reads, what its export holds, what it refuses."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    Data2VecTextConfig,
    EsmConfig,
    IBertConfig,
    LongformerConfig,
    NystromformerConfig,
    RobertaPreLayerNormConfig,
    XmodConfig,
)

from bali_ds.cli import main
from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.errors import InputError
from bali_ds.export.export_run import export_run
from bali_ds.inference.encoder import load
from bali_ds.model.build_model import build_aligner
from bali_ds.model.pretrained import shapes_of_encoder
from bali_ds.model.text_encoder import positions_of
from bali_ds.model.tokenizer_checks import matching_tokenizer
from bali_ds.planning.run_data import RunData
from tests.families import FAMILIES, POSITIONS, SIZES, first_documents, vector_by_hand, write_family
from tests.model.test_export_of_kinds import write_run

LONG = "Nausea and vomiting after chemotherapy. " * 60
SMALL = {**SIZES, "vocab_size": 50, "pad_token_id": 1, "max_position_embeddings": POSITIONS + 2}
# Rotary positions need no embeddings, so that ESM reads all that its configuration says.
LONGEST = {"esm": POSITIONS + 2}
FROM_PADDING = {
    "longformer": LongformerConfig(**SMALL, attention_window=4),
    "esm": EsmConfig(**SMALL, position_embedding_type="absolute", mask_token_id=4),
    "data2vec": Data2VecTextConfig(**SMALL),
    "ibert": IBertConfig(**SMALL),
    "prelayernorm": RobertaPreLayerNormConfig(**SMALL),
    "xmod": XmodConfig(**SMALL, languages=["en_XX"], default_language="en_XX"),
}


@pytest.mark.parametrize("name", FROM_PADDING)
def test_positions_are_counted_from_the_padding_token_on(name):
    model = AutoModel.from_config(FROM_PADDING[name]).eval()
    assert positions_of(model) == POSITIONS
    with torch.no_grad():
        assert model(input_ids=torch.full((1, POSITIONS), 7)).last_hidden_state.shape[1] == POSITIONS
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, POSITIONS + 1), 7))


def test_positions_that_the_configuration_counts_itself():
    config = NystromformerConfig(
        **SIZES, vocab_size=50, max_position_embeddings=POSITIONS, segment_means_seq_len=POSITIONS
    )
    assert positions_of(AutoModel.from_config(config)) == POSITIONS  # its table has two rows more


@pytest.mark.parametrize("name", FAMILIES)
def test_an_export_is_the_model_and_reads_the_tokens_of_the_training(name, sample, tmp_path):
    source = write_family(name, tmp_path / "encoder")
    recipe = sample.recipe(tmp_path / "runs", text_encoder={"path": str(source), "weights": "pretrained"})
    aligner = build_aligner(recipe, 4).eval()
    for parameter in aligner.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    write_run(recipe, aligner)
    export_run(recipe.directory, tmp_path / "export", "float32")

    tokenizer, encoder = matching_tokenizer(source, shapes_of_encoder(source)), load(tmp_path / "export")
    assert encoder.max_tokens == positions_of(shapes_of_encoder(source)) == LONGEST.get(name, POSITIONS)
    settings = json.loads((tmp_path / "export/sentence_bert_config.json").read_text())
    assert settings["max_seq_length"] == encoder.tokenizer.model_max_length == encoder.max_tokens
    for text in ("Naïve β-cells, heart failure", LONG):
        expected = vector_by_hand(aligner.text.encoder, tokenizer, text, encoder.max_tokens)
        torch.testing.assert_close(torch.from_numpy(encoder.encode([text])[0]), expected, atol=1e-5, rtol=1e-4)

    ids = torch.tensor([[tokenizer.cls_id, *tokenizer.encode("Heart failure").ids, tokenizer.sep_id]])
    whole = AutoModelForMaskedLM.from_pretrained(tmp_path / "export").eval()
    with torch.no_grad():
        logits = aligner.text.head(aligner.text.encoder(input_ids=ids).last_hidden_state)
        torch.testing.assert_close(whole(input_ids=ids).logits, logits, atol=1e-4, rtol=1e-4)


def test_output_weights_that_are_not_the_embeddings_are_exported(sample, tmp_path):
    source = write_family("bert_cased", tmp_path / "encoder")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    recipe = sample.recipe(tmp_path / "runs", text_encoder={"path": str(source), "weights": "random"})
    aligner = build_aligner(recipe, 4)
    write_run(recipe, aligner)
    export_run(recipe.directory, tmp_path / "export", "float32")
    own = aligner.text.head.predictions.decoder.weight
    assert own is not aligner.text.encoder.embeddings.word_embeddings.weight
    assert torch.equal(load_file(tmp_path / "export/model.safetensors")["cls.predictions.decoder.weight"], own)


def test_a_weight_that_an_export_would_lack_is_named(sample, tmp_path):
    recipe = sample.recipe(tmp_path / "runs")
    aligner = build_aligner(recipe, 4)
    aligner.text.adapter = torch.nn.Linear(2, 2)
    write_run(recipe, aligner)
    with pytest.raises(InputError, match=r"text\.adapter\.bias of the checkpoint is not a weight of this architecture"):
        export_run(recipe.directory, tmp_path / "export")
    assert not (tmp_path / "export").exists()


@pytest.fixture
def lowered(tmp_path):
    """An encoder whose tokenizer.json keeps the case, while transformers is told to lower it."""
    directory = write_family("bert_cased", tmp_path / "lowered")
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(settings | {"do_lower_case": True}))
    return directory


@pytest.fixture
def short(tmp_path):
    """An encoder with fewer embeddings than its tokenizer has tokens."""
    directory = write_family("bert_cased", tmp_path / "short")
    AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(directory, vocab_size=399)).save_pretrained(directory)
    return directory


DIFFERENT = "BertTokenizer of transformers reads 'Renal Failure' as "
LACKING = "its tokenizer has an id of 399, but the model has 399 embeddings"


@pytest.mark.parametrize(("directory", "said"), [("lowered", DIFFERENT), ("short", LACKING)])
def test_a_tokenizer_that_does_not_fit_is_refused_from_the_build_on(directory, said, request, sample, tmp_path, capsys):
    encoder = request.getfixturevalue(directory)
    first_documents(tmp_path / "corpus.pubtator", 20)
    build = f"shards build --graph {sample.graph} --corpus pubtator:{tmp_path}/corpus.pubtator"
    build += f" --out {tmp_path}/shards --max-tokens {POSITIONS} --tokenizer "
    capsys.readouterr()
    assert main([*build.split(), str(encoder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line

    # shards of the same tokenizer by itself
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone/tokenizer.json").write_bytes((encoder / "tokenizer.json").read_bytes())
    assert main([*build.split(), str(tmp_path / "alone")]) == 0
    capsys.readouterr()
    assert main(["shards", "lint", f"{tmp_path}/shards", "--tokenizer", str(encoder)]) == 1
    assert said in capsys.readouterr().out
    recipe = sample.recipe(
        tmp_path / "runs",
        text_encoder={"path": str(encoder), "weights": "pretrained"},
        data={"graph": sample.graph, "shards": f"{tmp_path}/shards"},
    )
    with pytest.raises(InputError, match=said):
        RunData.open(recipe)


def test_lint_compares_the_shards_with_the_tokenizer(sample, tmp_path, capsys):
    other = write_family("bert_cased", tmp_path / "other")
    assert main(["shards", "lint", str(sample.shards), "--tokenizer", str(sample.encoder)]) == 0
    capsys.readouterr()
    assert main(["shards", "lint", str(sample.shards), "--tokenizer", str(other)]) == 1
    expected, found = (Tokenizer.load(each).fingerprint[:12] for each in (sample.encoder, other))
    assert f"was built with tokenizer {expected}, {other} has {found}; build" in capsys.readouterr().out
