"""Decoders as text encoders: tokens, attention to one or both sides, pooling, and training at every ZeRO stage."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from bali_ds.cli import main
from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.errors import InputError
from bali_ds.export.export_run import export_run
from bali_ds.inference.concept_dictionary import read_dictionary
from bali_ds.inference.encoder import load
from bali_ds.inference.linker import Linker
from bali_ds.model.build_model import build_aligner
from bali_ds.model.pretrained import load_tokenizer
from bali_ds.model.text_encoder import load_text_encoder
from bali_ds.planning.run_data import RunData
from tests.card_snippet import vectors_by_the_card
from tests.conftest import REPOSITORY, Sample, run_ranks
from tests.model.decoders import FAMILIES, TOKENS, write_decoder
from tests.packs import random_pack, states_one_by_one

SOURCE = REPOSITORY / "shards/sample"
STAGES = ("0", "1", "2", "3", "hpz")
"""ZeRO stages, and stage 3 with ZeRO++'s second copy of the weights on the ranks of a host."""
ENDS = ("0", "3")
STEPS = 2
PROMPT = "Instruct: Name the concept.\nQuery: "


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    """The directory of each family."""
    texts = (SOURCE / "corpus.pubtator").read_text().splitlines()
    out = tmp_path_factory.mktemp("decoders")
    return {family: write_decoder(out / family, family, texts) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_training_and_transformers_frame_a_text_alike(decoders, family, tmp_path):
    own, theirs = Tokenizer.load(decoders[family]), load_tokenizer(decoders[family])
    ids = theirs("renal failure")["input_ids"]
    assert ids == [own.cls_id, *own.encode("renal failure").ids, own.sep_id]
    names = TOKENS[family]
    end = names["eos_token"]
    begin, pad = names.get("bos_token", end), names.get("pad_token", end)
    assert theirs.convert_ids_to_tokens([own.cls_id, own.sep_id, own.pad_id, own.mask_id]) == [begin, end, pad, pad]
    theirs.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("renal failure")["input_ids"] == ids
    assert Tokenizer.load(tmp_path).describe()["mask_id"] == own.mask_id


def test_the_tokenizer_of_an_encoder_still_needs_a_mask_token(tokenizer_directory, tmp_path):
    definition = json.loads((tokenizer_directory / "tokenizer.json").read_text())
    del definition["model"]["vocab"]["[MASK]"]
    definition["added_tokens"] = [each for each in definition["added_tokens"] if each["content"] != "[MASK]"]
    for number, token in enumerate(definition["model"]["vocab"]):
        definition["model"]["vocab"][token] = number
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"cls_token": "[CLS]", "eos_token": "[SEP]"}))
    with pytest.raises(InputError, match="has no mask token"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_each_sequence_alone(decoders, family, bidirectional):
    text = load_text_encoder(str(decoders[family]), seed=0, bidirectional=bidirectional).eval()
    plain = AutoModel.from_pretrained(decoders[family], attn_implementation="eager").eval()
    plain.config.is_causal = not bidirectional
    packs = [random_pack(3, 9, 30), random_pack(4)]
    with torch.no_grad():
        found, expected = text.hidden_states(packs), states_one_by_one(plain, *packs)
        changed = packs[0].input_ids.clone()
        changed[-1] += 1
        (again,) = text.hidden_states([packs[0].__class__(changed, *list(vars(packs[0]).values())[1:])])
    torch.testing.assert_close(torch.cat(found), expected, atol=1e-5, rtol=1e-4)
    # the first token of the last sequence sees its last one only if attention goes both ways
    first = int(packs[0].offsets[-2])
    assert torch.equal(again[first], found[0][first]) is not bidirectional


def test_last_pooling_takes_the_token_that_ends_a_name(decoders):
    text = load_text_encoder(str(decoders["llama"]), seed=0, pooling="last").eval()
    pack = random_pack(3, 7, 7)
    with torch.no_grad():
        (states,) = text.hidden_states([pack])
        assert torch.equal(text.name_vectors(pack), states[torch.tensor([2, 9, 16])])


def test_objectives_that_predict_tokens_are_refused_before_weights_are_read(sample, decoders, tmp_path, monkeypatch):
    monkeypatch.setattr("bali_ds.model.build_model.load_text_encoder", None)
    recipe = sample.recipe(tmp_path, text_encoder={"path": str(decoders["llama"])})
    with pytest.raises(InputError, match=r"objective\.masked_language_model\.weight: .*llama is a decoder"):
        build_aligner(recipe, 10)


def test_bidirectional_is_refused_for_an_encoder(sample):
    with pytest.raises(InputError, match=r"text_encoder\.bidirectional: .* is not a decoder"):
        load_text_encoder(str(sample.encoder), seed=0, bidirectional=True)


def recipe_of(data: Sample, runs: Path, family: str, stage: str):
    return data.recipe(
        runs,
        name=f"{family}-{stage}",
        text_encoder={
            "path": str(data.encoder),
            "weights": "pretrained",  # which stage 3 partitions while they are loaded
            "pooling": "last",
            "bidirectional": family == "qwen",
            "query_prompt": PROMPT,
        },
        objective={"masked_language_model": {"weight": 0.0}},
        masking={"tokens": 0.0},
        batch={"passages": 8},
        steps=STEPS,
        validation={"passages": 8},
        deepspeed=runs.parent / "hpz.json" if stage == "hpz" else REPOSITORY / f"ds_configs/zero{stage}.json",
    )


@pytest.fixture(
    scope="module",
    params=[
        ("llama", ENDS),
        pytest.param(("llama", STAGES), marks=pytest.mark.slow),
        pytest.param(("qwen", STAGES), marks=pytest.mark.slow),
    ],
    ids=lambda param: f"{param[0]}-{len(param[1])}",
)
def runs(sample, decoders, tmp_path_factory, request):
    """Recipes of one family's runs, by ZeRO stage. Each run was trained on two ranks and resumed on one."""
    family, stages = request.param
    out = tmp_path_factory.mktemp(family)
    build = f"shards build --graph {sample.graph} --corpus pubtator:{SOURCE}/corpus.pubtator --validation 0.05"
    assert main(f"{build} --tokenizer {decoders[family]} --out {out}/shards".split()) == 0
    data = Sample(sample.graph, out / "shards", decoders[family])
    settings = json.loads((REPOSITORY / "ds_configs/zero3.json").read_text())
    settings["zero_optimization"]["zero_hpz_partition_size"] = 2
    (out / "hpz.json").write_text(json.dumps(settings))
    recipes = {stage: recipe_of(data, out / "runs", family, stage) for stage in stages}
    (out / "recipes.json").write_text(json.dumps([recipe.model_dump(mode="json") for recipe in recipes.values()]))
    run_ranks(1, Path(__file__).with_name("decoder_ranks.py"), out / "recipes.json", timeout=600)
    return recipes


def losses(recipe):
    rows = map(json.loads, (recipe.directory / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.timeout(900)
def test_losses_are_equal_at_all_stages_and_after_resuming_on_one_rank(runs):
    plain, *others = map(losses, runs.values())
    assert len(plain) == STEPS + 1
    assert plain[0] != plain[1]
    for each in others:
        assert each == pytest.approx(plain, rel=1e-5)


def test_the_tokens_of_a_prompt_must_be_told_apart_for_means(runs):
    """A byte-level tokenizer joins a space at the end of the prompt with the next word; a line break stays apart."""
    recipe = runs["0"]

    def opened(prompt):
        changed = recipe.text_encoder.model_copy(update={"pooling": "mean", "query_prompt": prompt})
        return RunData.open(recipe.model_copy(update={"text_encoder": changed}))

    opened("Query:\n")
    with pytest.raises(InputError, match=r"query_prompt: 'Query: ' shares a token with the word after it.*line break"):
        opened("Query: ")


def test_the_export_is_an_ordinary_directory_and_links(runs, tmp_path):
    out = tmp_path / "export"
    export_run(runs["3"].directory, out, "float32")
    model = AutoModel.from_pretrained(out)
    assert getattr(model.config, "is_causal", True) is not runs["3"].text_encoder.bidirectional
    tokenizer, encoder = AutoTokenizer.from_pretrained(out), load(out)
    texts = ["renal failure", "nausea"]
    with torch.no_grad():
        for text, vector in zip(texts, encoder.encode(texts), strict=True):
            last = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1]
            np.testing.assert_allclose(vector, torch.nn.functional.normalize(last, dim=0), atol=1e-5)
    np.testing.assert_allclose(vectors_by_the_card(out, texts), encoder.encode(texts), atol=1e-5)
    dictionary = tmp_path / "dictionary.txt"
    dictionary.write_text("C1||renal failure\nC2||nausea\n")
    linker = Linker.build(encoder, read_dictionary(dictionary))
    nearest = (encoder.encode(texts, query=True) @ encoder.encode(texts).T).argmax(axis=1)
    assert [found[0].cui for found in linker.link(texts, top=1)] == [f"C{row + 1}" for row in nearest]


def test_sentence_transformers_gives_the_same_vectors(runs, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    export_run(runs["0"].directory, tmp_path / "export", "float32")
    texts = ["renal failure", "acute nausea and vomiting"]
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "export"), device="cpu")
    own = load(tmp_path / "export")
    np.testing.assert_allclose(own.encode(texts), theirs.encode(texts), atol=1e-5)
    np.testing.assert_allclose(own.encode(texts, query=True), theirs.encode_query(texts), atol=1e-5)
    np.testing.assert_allclose(own.encode([PROMPT + text for text in texts]), theirs.encode_query(texts), atol=1e-5)
