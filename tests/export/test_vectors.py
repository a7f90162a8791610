"""The vectors of an export are the same in bali_ds, sentence-transformers, plain transformers and onnxruntime."""

import json
import shutil

import numpy as np
import onnxruntime
import pytest
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

import bali_ds
from bali_ds.errors import InputError
from bali_ds.export.export_run import export_run
from bali_ds.inference.concept_dictionary import ConceptDictionary
from bali_ds.inference.linker import Linker
from tests.card_snippet import vectors_by_the_card
from tests.export.conftest import write_run

TEXTS = ["word1 word20 word3", "word7", "word4 word4 word9 word11 word2 word30", "word1 word2 word3 " * 20]


@pytest.fixture(scope="module")
def exported(trained, encoder_directory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    export_run(write_run(folder / "run", trained, "0-fp32", encoder_directory), folder / "out", "float32", onnx=True)
    return folder / "out"


def by_the_card(directory):
    return vectors_by_the_card(directory, TEXTS)


def by_onnx(directory):
    tokens = AutoTokenizer.from_pretrained(directory)(TEXTS, padding=True, truncation=True, return_tensors="np")
    session = onnxruntime.InferenceSession(directory / "onnx/model.onnx", providers=["CPUExecutionProvider"])
    return session.run(["sentence_embedding"], {name: tokens[name] for name in ("input_ids", "attention_mask")})[0]


def by_sentence_transformers(directory):
    library = pytest.importorskip("sentence_transformers")
    return library.SentenceTransformer(str(directory), device="cpu").encode(TEXTS)


@pytest.mark.parametrize("by", [by_the_card, by_onnx, by_sentence_transformers])
def test_the_vectors_are_those_of_bali_ds(exported, by):
    own = bali_ds.load(exported).encode(TEXTS)
    assert np.abs(by(exported) - own).max() < 1e-5
    with_special_tokens = bali_ds.load(exported).encode(TEXTS, pooling="mean")
    assert np.abs(own - with_special_tokens).max() > 1e-3  # so the comparison can fail


def test_transformers_misses_the_pooler_alone_and_has_no_use_for_the_head_alone(exported):
    pooler = {"pooler.dense.weight", "pooler.dense.bias"}
    for options, missing in (({}, pooler), ({"add_pooling_layer": False}, set())):
        _, report = AutoModel.from_pretrained(exported, output_loading_info=True, **options)
        unexpected = report.pop("unexpected_keys")
        assert unexpected
        assert all(key.startswith("cls.predictions.") for key in unexpected)
        assert report.pop("missing_keys") == missing
        assert not any(report.values())
    _, report = AutoModelForMaskedLM.from_pretrained(exported, output_loading_info=True)
    assert not any(report.values())


def test_the_state_of_the_last_token_is_the_vector_in_onnx_too(trained, encoder_directory, tmp_path):
    run = write_run(tmp_path / "run", trained, "0-fp32", encoder_directory, pooling="last")
    export_run(run, tmp_path / "out", "float32", onnx=True)
    own = bali_ds.load(tmp_path / "out").encode(TEXTS)
    assert np.abs(by_onnx(tmp_path / "out") - own).max() < 1e-5
    assert np.abs(bali_ds.load(tmp_path / "out").encode(TEXTS, pooling="mean") - own).max() > 1e-3


PROMPT = "word5 word6 word8 "


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_sentence_transformers_reads_queries_after_the_prompt(trained, encoder_directory, tmp_path, pooling):
    library = pytest.importorskip("sentence_transformers")
    run = write_run(tmp_path / "run", trained, "0-fp32", encoder_directory, query_prompt=PROMPT, pooling=pooling)
    export_run(run, tmp_path / "out", "float32")
    theirs, own = library.SentenceTransformer(str(tmp_path / "out"), device="cpu"), bali_ds.load(tmp_path / "out")
    queries, names = own.encode(TEXTS, query=True), own.encode(TEXTS)
    assert np.abs(theirs.encode_query(TEXTS) - queries).max() < 1e-5
    assert np.abs(theirs.encode(TEXTS, prompt_name="query") - queries).max() < 1e-5
    assert np.abs(theirs.encode_document(TEXTS) - names).max() < 1e-5
    assert np.abs(theirs.encode(TEXTS) - names).max() < 1e-5
    assert np.abs(queries - names).max() > 1e-3
    # a mention that is all of its text is pooled from the same tokens as the query
    spans = own.encode_mentions([(text, 0, len(text)) for text in TEXTS[:3]])
    if pooling == "mean":
        assert np.abs(spans - queries[:3]).max() < 1e-5
    mention, query = Linker.build(own, ConceptDictionary.of([("word7", ["C1"])])).link(["word7"])[0][0], queries[1]
    assert mention.score == pytest.approx(float(query @ names[1]), abs=1e-5)


def test_a_server_finds_the_fields_that_it_requires(exported):
    """text-embeddings-inference parses two files into structs whose fields are not optional."""
    assert json.loads((exported / "sentence_bert_config.json").read_text())["max_seq_length"] == 16
    pooling = json.loads((exported / "1_Pooling/config.json").read_text())
    assert (pooling["pooling_mode_cls_token"], pooling["pooling_mode_mean_tokens"]) == (False, True)


def test_a_name_on_the_hub_is_downloaded_at_its_revision(exported, tmp_path, monkeypatch):
    asked = []

    def snapshot_download(repository, *, revision, allow_patterns):
        asked.append((repository, revision))
        assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in allow_patterns)
        return str(exported)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    found = [bali_ds.load(name).encode(TEXTS) for name in ("org/model", "org/model@v2", exported)]
    assert asked == [("org/model", None), ("org/model", "v2")]
    assert np.array_equal(found[0], found[2])
    assert np.array_equal(found[1], found[2])


def test_a_run_instead_of_its_export_is_recognized(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "runs/x/export")
    with pytest.raises(InputError, match=r"did you mean .*runs/x/export\?"):
        bali_ds.load(tmp_path / "runs/x")
