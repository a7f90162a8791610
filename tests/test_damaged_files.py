"""Damaged files of every kind, in every command that reads them: exit status 2, one line, no traceback."""

import contextlib
import json
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from bali_ds.cli import main
from bali_ds.graph.manifest import checksum
from bali_ds.shards.build import build_shards
from bali_ds.shards.build_settings import BuildSettings, Corpus
from tests.damage import (
    Damage,
    appended,
    array,
    both,
    changed,
    cut,
    endless,
    fifo,
    header,
    is_harmless,
    missing,
    npz,
    objects,
    replaced,
    written,
)

RECIPE = """\
name: run
seed: 1
data: {graph: graph, shards: shards, workers: 0}
text_encoder: {path: encoder, weights: random}
batch: {passages: 4}
steps: 3
precision: fp32
deepspeed: ds.json
"""
MEASURE = {"value": 0.5, "low": 0.4, "high": 0.6}
SUBSET = {"n": 9, "acc@1": MEASURE, "acc@5": MEASURE, "mrr": MEASURE}
FILES = {
    "recipe.yaml": RECIPE,
    "ds.json": '{"zero_optimization": {"stage": 1}}',
    "hostfile": "node1 slots=2\n",
    "mentions.txt": "renal failure\n",
    "names.txt": "C1||renal failure\nC2||anemia\n",
    "queries.tsv": "mention\tcui\nrenal\tC1\n",
    "documents.jsonl": '{"id": 1, "text": "renal failure"}\n',
    "pubmedqa.json": json.dumps({"1": {"QUESTION": "q?", "CONTEXTS": ["c"], "final_decision": "yes"}}),
    "bioasq.json": json.dumps({"questions": [{"body": "b", "type": "yesno", "exact_answer": "yes", "snippets": []}]}),
    "medqa.jsonl": json.dumps({"question": "q", "options": {"A": "a", "B": "b"}, "answer_idx": "A"}) + "\n",
    "medmcqa.json": json.dumps({"question": "q", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 2}) + "\n",
    "blurb.json": json.dumps({"sentence": "s", "label": "x"}) + "\n",
    "run/recipe.yaml": RECIPE,
    "run/metrics.jsonl": json.dumps({"step": 1, "loss": 2.0, "epoch": 0.1, "seconds": 9.0, "samples_per_second": 1.0})
    + '\n{"step": 2, "validation/mrr": NaN}\n',
    "run/evaluation.json": json.dumps(
        {
            "linking": {"untrained": {"all": SUBSET}, "trained": {"all": SUBSET}, "difference": {"all": SUBSET}},
            "retrieval": {"text_to_graph_r@1": 0.5, "graph_to_text_r@1": 0.5},
            "embedding": {
                "groups": ["g"],
                "names": ["n"],
                "maps": {"trained": [[0.5, 0.5]]},
                "neighbors": [{"name": "n", "trained": [{"name": "m", "cosine": 0.5}]}],
            },
        }
    ),
    "run/generated.json": json.dumps(
        [{"sample": "s", "passage": {"true": "a", "written": "b"}, "facts": {"true": ["f"], "written": []}}]
    ),
    "run/export/bali_ds.json": json.dumps({"format_version": 1, "pooling": "mean", "fingerprints": {"graph": "0"}}),
    "run/failures/step-00000002.json": json.dumps(
        {"start": {"epoch": 0, "samples_seen": 4}, "ranks": [{"rank": 0, "host": "h", "concepts": [], "samples": []}]}
    ),
}
PLAN = "plan --config recipe.yaml"
SHOW_CONCEPT = "graph show graph C0000001"
STATS = "shards stats shards"
ORDER = "shards order shards --global-batch 4 --steps 1"
ENCODE = "encode --model model mentions.txt --out vectors.npy"
LINK = "link --model model --dictionary names.txt --index index mentions.txt"
CONTEXT = "context --model model --graph graph renal"
REPORT = "report run"
REPLAY = "replay run 2"
LINKING = "evaluate linking --model model --dictionary names.txt --queries queries.tsv"
CORPUS = "graph stats graph --corpus jsonl:documents.jsonl"


def questions(task: str) -> str:
    file = next(name for name in FILES if name.startswith(task))
    return f"evaluate qa --model model --task {task} --data {file} --folds 3"


def sealed(**changes: object) -> Damage:
    """Change keys of the graph's manifest and compute its checksum again."""

    def damage(root: Path) -> None:
        manifest = json.loads((root / "graph/manifest.json").read_text()) | changes
        manifest["checksum"] = checksum(manifest)
        (root / "graph/manifest.json").write_text(json.dumps(manifest))

    return damage


def column(**changes: object) -> Damage:
    """Change the entry of a column in the graph's manifest and compute its checksum again."""

    def damage(root: Path) -> None:
        columns = json.loads((root / "graph/manifest.json").read_text())["columns"]
        columns["names.text"] |= changes
        sealed(columns=columns)(root)

    return damage


def field(name: str, value: int) -> Damage:
    """Set a field of all rows of the sample table."""

    def change(table: np.ndarray) -> np.ndarray:
        table = table.copy()
        table[name] = value
        return table

    return array("shards/samples.npy", change)


def numbers(name: str, place: int, value: int) -> Damage:
    """Set one number of an array."""

    def change(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[place] = value
        return values

    return array(name, change)


def partial(note: str) -> Damage:
    return both(written("x.part", "half"), written("x.part.json", note))


TAR = "shards/train-000000.tar"
DEEP = "[" * 100 + "]" * 100
YAML_BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n" + RECIPE

RECIPES = [
    (written("recipe.yaml", ""), "is not a mapping"),
    (written("recipe.yaml", "- a\n"), "is not a mapping"),
    (written("recipe.yaml", "a: [1\nb: 2\n"), "recipe.yaml:2: is not valid YAML"),
    (appended("recipe.yaml", "seed: 2\n"), "recipe.yaml:9: is not valid YAML: seed: is given twice; keep one"),
    (replaced("recipe.yaml", "workers: 0", "workers: 0, workers: 1"), "workers: is given twice"),
    (written("recipe.yaml", YAML_BOMB), "the alias *a is not supported; write its value"),
    (written("recipe.yaml", "x: &x {a: 1}\ny: {<<: [*x, *x]}\n"), "the alias *x is not supported"),
    (appended("recipe.yaml", "<<: {steps: 4}\n"), "<<: no such key"),
    (replaced("recipe.yaml", "steps: 3", "steps: 2024-01-31"), "steps: Input should be a valid integer"),
    (replaced("recipe.yaml", "steps: 3", "epochs: 1e400"), "epochs: Input should be a finite number"),
    (replaced("recipe.yaml", "steps: 3", "epochs: .inf"), "epochs: Input should be a finite number"),
    (replaced("recipe.yaml", "steps: 3", "epochs: .nan"), "epochs: Input should be"),
    (replaced("recipe.yaml", "steps: 3", "epochs: 1.0e+300"), "epochs: must be at most"),
    (replaced("recipe.yaml", "seed: 1", f"seed: {10**30}"), "seed: must be at most"),
    (replaced("recipe.yaml", "seed: 1", "seed: " + "9" * 5000), "is not valid YAML: Exceeds the limit"),
    (replaced("recipe.yaml", "steps: 3", "steps: -3"), "steps: Input should be greater than or equal to 1"),
    (replaced("recipe.yaml", "steps: 3", "steps: 3_000_000_000_000"), "steps: must be at most"),
    (replaced("recipe.yaml", "steps: 3", f"steps: {':'.join(['59'] * 900)}.5"), "is not valid YAML"),
    (replaced("recipe.yaml", "run", "!!python/object/apply:os.system [id]"), "the tag tag:yaml.org,2002:python/object"),
    (replaced("recipe.yaml", "name: run", "name: !!binary cnVu"), "the tag tag:yaml.org,2002:binary is not supported"),
    (appended("recipe.yaml", f"x: {DEEP}\n"), "is nested in more than 64 levels"),
    (appended("recipe.yaml", f"x: {'[' * 100_000}\n"), "is not valid YAML: maximum recursion depth"),
    (appended("recipe.yaml", "[a]: 1\n"), "a key is not a string"),
    (replaced("recipe.yaml", "name: run", 'name: "\\ud800"'), "half of a surrogate pair"),
    (replaced("recipe.yaml", "graph: graph", 'graph: "gr\\0aph"'), "gr\\x00aph: is not a graph"),
    (replaced("recipe.yaml", "graph: graph", 'graph: "\\e[2Jgraph"'), "\\x1b[2Jgraph: is not a graph"),
    (written("recipe.yaml", b"name: \xff\xfe\n"), "is not UTF-8"),
    (written("recipe.yaml", RECIPE.encode("utf-16")), "is not UTF-8"),
    (written("recipe.yaml", "a: \x01\n"), "is not valid YAML: special characters are not allowed"),
    (written("recipe.yaml", "# " + "x" * 300_000), "has more than 262,144 bytes"),
    (fifo("recipe.yaml"), "recipe.yaml: cannot be read: it is not a regular file"),
    (endless("recipe.yaml"), "recipe.yaml: cannot be read: it is not a regular file"),
    (
        replaced("recipe.yaml", "{path: encoder, weights: random}", "[encoder]"),
        "text_encoder: must be a mapping, got a list",
    ),
    (replaced("recipe.yaml", "text_encoder: {path: encoder, weights: random}\n", ""), "text_encoder: Field required"),
    (replaced("recipe.yaml", "workers: 0", "fan_out: 100000000"), "data.fan_out: Input should be less than"),
]
DEEPSPEED = [
    (written("ds.json", '{"zero_optimization": {}, "zero_optimization": {}}'), "zero_optimization: is given twice"),
    (written("ds.json", '{"steps_per_print": 1e400}'), "ds.json: 1e400: is not a JSON number"),
    (written("ds.json", '{"steps_per_print": NaN}'), "ds.json: NaN: is not a JSON number"),
    (written("ds.json", "[1]"), "is not a JSON object"),
    (written("ds.json", f'{{"zero_optimization": {DEEP}}}'), "is nested in more than 64 levels"),
    (fifo("ds.json"), "ds.json: cannot be read: it is not a regular file"),
]
GRAPHS = [
    (missing("graph/manifest.json"), "manifest.json is missing"),
    (written("graph/manifest.json", "[]"), "is not the manifest of a graph"),
    (written("graph/manifest.json", "{"), "manifest.json: is not valid JSON"),
    (written("graph/manifest.json", DEEP), "is nested in more than 64 levels"),
    (changed("graph/manifest.json", "sources", ["x"]), "does not match its checksum"),
    (sealed(columns=7), "the field columns is missing or invalid"),
    (sealed(relations=[1]), "the field relations is missing or invalid"),
    (column(length=2**62), "the field length or digest of names.text"),
    (column(length=-1), "the field length or digest of names.text"),
    (column(dtype="|O"), "the field dtype of names.text"),
    (sealed(columns={"names.text": 5}), "the field columns is missing or invalid"),
    (cut("graph/names.text.npy", -3), "names.text.npy: has"),
    (cut("graph/edges.offsets.npy", 20), "edges.offsets.npy: is not a valid npy file"),
    (written("graph/names.text.npy", ""), "names.text.npy: is not a valid npy file; build the graph again"),
    (npz("graph/names.text.npy"), "names.text.npy: is not a valid npy file; build the graph again"),
    (objects("graph/names.text.npy"), "names.text.npy: has object [1], expected uint8"),
    (array("graph/names.text.npy", lambda old: old.reshape(1, -1)), "names.text.npy: has uint8 [1, "),
    (array("graph/names.text.npy", lambda old: old.astype(">i8")), "names.text.npy: has >i8"),
    (header("graph/names.text.npy", (2**62,)), "names.text.npy: has uint8 [4611686018427387904], expected"),
    (header("graph/names.text.npy", (-5,)), "names.text.npy: is not a valid npy file"),
    (fifo("graph/names.text.npy"), "names.text.npy: cannot be read: it is not a regular file"),
    (endless("graph/names.text.npy"), "names.text.npy: cannot be read: it is not a regular file"),
    (missing("graph/names.text.npy"), "names.text.npy: cannot be read: No such file"),
    (numbers("graph/names.offsets.npy", 3, 2**31), "names.offsets.npy: damaged at 2"),
    (numbers("graph/concepts.names.npy", 1, -(2**62)), "concepts.names.npy: is damaged"),
    (numbers("graph/edges.offsets.npy", 2, 2**32 - 1), "edges.offsets.npy: is damaged"),
]
INDEXES = [
    (written("shards/index.json", "[]"), "format version None"),
    (written("shards/index.json", "{"), "index.json: is not valid JSON"),
    (changed("shards/index.json", "shards", [1] * 200_000), "shard name None is not a plain file name"),
    (changed("shards/index.json", "x", [1] * 5_000_000), "holds more than 5,000,000 values"),
    (written("shards/index.json", ""), "index.json: is not valid JSON"),
    (written("shards/index.json", f'{{"format_version": {DEEP}}}'), "is nested in more than 64 levels"),
    (written("shards/index.json", '{"format_version": 1, "format_version": 1}'), "format_version: is given twice"),
    (changed("shards/index.json", "format_version", [1]), "format version a list"),
    (changed("shards/index.json", "counts", None), "key counts: Field required; rebuild it: bali-ds shards index"),
    (changed("shards/index.json", "counts", {"documents": -1}), "key counts: documents: -1 is not a count; rebuild it"),
    (changed("shards/index.json", "counts", ["documents"]), "key counts: Input should be a valid dictionary"),
    (changed("shards/index.json", "graph.names", 2**40), "key graph.names: Input should be less than 2147483648"),
    (changed("shards/index.json", "graph.names", 10**6), "names.offsets.npy: has int64 ["),
    (changed("shards/index.json", "graph.concepts", "60"), "key graph.concepts: Input should be a valid integer"),
    (changed("shards/index.json", "graph", [1]), "key graph: must be a mapping"),
    (changed("shards/index.json", "tokenizer.vocab_size", -1), "key tokenizer.vocab_size: Input should be greater"),
    (changed("shards/index.json", "tokenizer.vocab_size", 2), "a special token is outside of the vocabulary of 2"),
    (changed("shards/index.json", "tokenizer.vocab_size", 1.5), "key tokenizer.vocab_size: Input should be a valid"),
    (changed("shards/index.json", "tokenizer.mask_id", 10**9), "a special token is outside of the vocabulary"),
    (changed("shards/index.json", "max_tokens", 0), "key max_tokens: Input should be greater than or equal to 2"),
    (changed("shards/index.json", "max_name_tokens", True), "key max_name_tokens: Input should be a valid integer"),
    (changed("shards/index.json", "shards", {"a": 1}), "key shards: Input should be a valid list"),
    (changed("shards/index.json", "shards.0.samples", -1), "key shards.0.samples: Input should be greater than"),
    (changed("shards/index.json", "shards.0.samples", 2**40), "bytes cannot hold 1099511627776 samples"),
    (changed("shards/index.json", "shards.0.split", "test"), "key shards.0.split: Input should be 'train' or"),
    (changed("shards/index.json", "shards.0.split", "validation"), "train shards must come before validation shards"),
    (changed("shards/index.json", "shards.0.bytes", 2**45), "has"),
    (changed("shards/index.json", "shards.0.name", "../a.tar"), "shard name '../a.tar' is not a plain file name"),
    (changed("shards/index.json", "shards.0.name", "\x1b]0;x\x07.tar"), "is not a plain file name that ends in .tar"),
    (changed("shards/index.json", "fingerprint", "../../../x"), "fingerprint '../../../x' is not a SHA-256"),
    (changed("shards/index.json", "tables", {"x.npy": "0" * 64}), "table 'x.npy' is unknown"),
    (missing("shards/index.json"), "index.json: cannot be read: No such file"),
    (fifo("shards/index.json"), "index.json: cannot be read: it is not a regular file"),
    (endless("shards/index.json"), "index.json: cannot be read: it is not a regular file"),
]
TABLES = [
    (missing(TAR), "train-000000.tar: is missing; the index lists it"),
    (fifo(TAR), "train-000000.tar: is missing; the index lists it"),
    (cut(TAR, -700), "train-000000.tar: has"),
    (cut("shards/samples.npy", -8), "samples.npy: has"),
    (written("shards/samples.npy", ""), "samples.npy: is not a valid npy file; build the shards again"),
    (npz("shards/samples.npy"), "samples.npy: is not a valid npy file; build the shards again"),
    (objects("shards/samples.npy"), "samples.npy: has object [1], expected records of 5 fields"),
    (array("shards/samples.npy", lambda old: old["offset"]), "samples.npy: has int64 ["),
    (header("shards/samples.npy", (2**40,)), "samples.npy: has records of 5 fields [1099511627776], expected"),
    (fifo("shards/samples.npy"), "samples.npy: cannot be read: it is not a regular file"),
    (array("shards/names.offsets.npy", lambda old: old[::-1].copy()), "a name has a negative length or one above"),
    (numbers("shards/names.offsets.npy", 5, 2**62), "a name has a negative length or one above the limit"),
    (numbers("shards/names.offsets.npy", 5, -(2**63)), "a name has a negative length or one above the limit"),
    (array("shards/names.offsets.npy", lambda old: old + 1), "names.offsets.npy: does not fit names.tokens.npy"),
    (numbers("shards/names.tokens.npy", 3, 65535), "names.tokens.npy: a token is outside of the vocabulary"),
    (cut("shards/names.tokens.npy", -2), "names.tokens.npy: has"),
    (array("shards/names.tokens.npy", lambda old: old.astype(np.float64)), "names.tokens.npy: has float64"),
]
ORDERS = [
    (field("offset", -1), "the sample table exceeds its size"),
    (field("offset", -(2**63)), "the sample table exceeds its size"),
]
SAMPLES = [
    (field("offset", 2**63 - 1), "the sample table exceeds its size; rebuild it: bali-ds shards index"),
    (field("tokens", 2**31 - 1), "the sample table exceeds its size; rebuild it: bali-ds shards index"),
    (field("edges", -5), "the sample table exceeds its size; rebuild it: bali-ds shards index"),
]
REINDEXED = [
    (written(TAR, ""), "train-000000.tar: cannot be read"),
    (written(TAR, bytes(2048)), "train-000000.tar: byte 0: there is no tar header"),
    (cut(TAR, 600), "train-000000.tar: byte 0: a member extends past the end of the file"),
    (fifo(TAR), "train-000000.tar: cannot be read: it is not a regular file"),
    (endless(TAR), "train-000000.tar: cannot be read: it is not a regular file"),
    (written("shards/report.json", "[]"), "report.json: must be a mapping"),
    (
        changed("shards/report.json", "counts.documents", "many"),
        "report.json: key counts: documents: 'many' is not a count",
    ),
]
MODELS = [
    (written("model/config.json", "{"), "config.json: is not valid JSON"),
    (written("model/config.json", "[]"), "config.json: must be a mapping"),
    (written("model/config.json", DEEP), "config.json: is nested in more than 64 levels"),
    (changed("model/config.json", "model_type", "evil"), "is not a Hugging Face encoder"),
    (changed("model/config.json", "model_type", 7), "is not a Hugging Face encoder"),
    (changed("model/config.json", "vocab_size", 10**12), "key vocab_size: Input should be less than 2147483648"),
    (changed("model/config.json", "vocab_size", 10**9), "config.json describes a model of"),
    (changed("model/config.json", "intermediate_size", 2**31 - 1), "config.json describes a model of"),
    (changed("model/config.json", "num_hidden_layers", 10**9), "key num_hidden_layers: Input should be less than"),
    (changed("model/config.json", "num_hidden_layers", -1), "key num_hidden_layers: Input should be greater than"),
    (changed("model/config.json", "num_labels", 10**9), "key num_labels: Input should be less than or equal to"),
    (changed("model/config.json", "hidden_size", "wide"), "key hidden_size: Input should be a valid integer"),
    (changed("model/config.json", "num_attention_heads", 7), "cannot be loaded as an encoder"),
    (changed("model/config.json", "attn_implementation", "a/b"), "attn_implementation 'a/b' is code of a repository"),
    (changed("model/config.json", "max_position_embeddings", 7), "cannot be loaded as an encoder"),
    (fifo("model/config.json"), "is not a model directory: it has no config.json"),
    (missing("model/model.safetensors"), "has a config.json but no weights"),
    (both(missing("model/model.safetensors"), written("model/pytorch_model.bin", "x")), "convert them to safetensors"),
    (written("model/model.safetensors", ""), "cannot be loaded as an encoder"),
    (written("model/model.safetensors", b"\xff" * 64), "cannot be loaded as an encoder"),
    (cut("model/model.safetensors", -100), "cannot be loaded as an encoder"),
    (written("model/tokenizer.json", "{"), "its tokenizer cannot be loaded"),
    (written("model/tokenizer.json", "[]"), "its tokenizer cannot be loaded"),
    (written("model/tokenizer.json", DEEP), "its tokenizer cannot be loaded"),
    (changed("model/tokenizer.json", "model.vocab", [1]), "its tokenizer cannot be loaded"),
    (changed("model/tokenizer.json", "model.vocab.zzz", 10**9), "its tokenizer has an id of 1000000000, but"),
    (fifo("model/tokenizer.json"), "tokenizer.json: is not a regular file; remove it"),
    (written("model/tokenizer_config.json", "[]"), "its tokenizer cannot be loaded"),
    (changed("model/tokenizer_config.json", "model_max_length", -1), "model_max_length -1 is not a length"),
    (changed("model/tokenizer_config.json", "model_max_length", "long"), "model_max_length 'long' is not a length"),
    (written("model/tokenizer_config.json", '{"model_max_length": 1e400}'), "1e400: is not a JSON number"),
    (written("model/bali_ds.json", "[]"), "bali_ds.json: must be a mapping"),
    (written("model/bali_ds.json", '{"pooling": "evil"}'), "pooling 'evil' is unknown"),
    (
        written("model/bali_ds.json", '{"pooling": ["mean"]}'),
        "bali_ds.json: key pooling: Input should be a valid string",
    ),
    (written("model/bali_ds.json", '{"mention_pooling": "evil"}'), "mention pooling 'evil' is unknown"),
    (written("model/bali_ds.json", '{"mention_pooling": "attention"}'), "mention_pooling.safetensors: cannot be read"),
    (written("model/bali_ds.json", '{"markers": ["[E]"]}'), "bali_ds.json: key markers.1: Field required"),
    (written("model/bali_ds.json", '{"markers": ["[E]", "[/E]"]}'), "the marker '[/E]' is not in the vocabulary"),
]
INDEXED_NAMES = [
    (written("index/index.json", "[]"), "holds the vectors of other names or of another model"),
    (written("index/index.json", DEEP), "index.json: is nested in more than 64 levels"),
    (npz("index/vectors.npy"), "vectors.npy: is not a valid npy file"),
    (cut("index/vectors.npy", -4), "vectors.npy: has"),
    (array("index/vectors.npy", lambda old: old[:1]), "vectors.npy: has float32 [1, 16], expected float32 [2, 16]"),
    (array("index/vectors.npy", np.asfortranarray), "vectors.npy: has float32 [2, 16]"),
]
NAME_INDEXES = [
    (written("graph.dictionary/dictionary.json", "[]"), "is the name index of another graph or version; remove it"),
    (cut("graph.dictionary/keys.npy", -8), "keys.npy: has"),
    (objects("graph.dictionary/keys.npy"), "keys.npy: has object [1], expected uint64"),
    (array("graph.dictionary/keys.npy", lambda old: old[:0]), "graph.dictionary: is damaged; remove it"),
    (numbers("graph.dictionary/offsets.npy", 2, -(2**62)), "graph.dictionary: is damaged; remove it"),
    (numbers("graph.dictionary/offsets.npy", -1, 2**62), "graph.dictionary: is damaged; remove it"),
    (numbers("graph.dictionary/concepts.npy", 0, 2**31 - 1), "graph.dictionary: is damaged; remove it"),
]
REPORTS = [
    (written("run/recipe.yaml", "- a\n"), "recipe.yaml: is not a mapping"),
    (written("run/recipe.yaml", YAML_BOMB), "the alias *a is not supported"),
    (written("run/metrics.jsonl", "[]\n[]\n"), "metrics.jsonl:1: Input should be a valid dictionary"),
    (written("run/metrics.jsonl", "{\n{}\n"), "metrics.jsonl:1: is not valid JSON"),
    (written("run/metrics.jsonl", '{"loss": 1}\n{}\n'), "metrics.jsonl:1: step: is missing or out of range"),
    (written("run/metrics.jsonl", '{"step": 1e400}\n{}\n'), "metrics.jsonl:1: step: is missing or out of range"),
    (written("run/metrics.jsonl", '{"step": 1, "loss": "x"}\n{}\n'), "metrics.jsonl:1: key loss: Input should be a"),
    (written("run/metrics.jsonl", '{"step": 1, "loss": 1}\n{}\n'), "metrics.jsonl:1: epoch: is missing"),
    (written("run/metrics.jsonl", b"\xff\n"), "metrics.jsonl:1: is not UTF-8"),
    (written("run/evaluation.json", "[]"), "evaluation.json: must be a mapping"),
    (changed("run/evaluation.json", "embedding.names", [1] * 1_000_000), "holds more than 1,000,000 values"),
    (written("run/evaluation.json", '{"linking": []}'), "evaluation.json: key linking: must be a mapping"),
    (written("run/evaluation.json", '{"linking": {"trained": {}}}'), "key linking.trained: Dictionary should have"),
    (changed("run/evaluation.json", "linking.trained.all.mrr", None), "key linking.trained.all.mrr: Field required"),
    (changed("run/evaluation.json", "linking.trained.all.mrr.low", "x"), "all.mrr.low: Input should be a valid number"),
    (changed("run/evaluation.json", "linking.trained.all.mrr.low", 1e300), "all.mrr.low: Input should be less than"),
    (
        changed("run/evaluation.json", "linking.trained.more", SUBSET),
        "untrained, trained and difference have different subsets",
    ),
    (changed("run/evaluation.json", "retrieval", {"mrr": 0.5}), "retrieval: lacks R@1 of a direction"),
    (changed("run/evaluation.json", "embedding.names", []), "groups, names and maps have different lengths"),
    (changed("run/evaluation.json", "embedding.neighbors.0.trained", None), "neighbors and maps are of different"),
    (changed("run/evaluation.json", "embedding.maps.trained.0", [0.5]), "maps.trained.0: List should have at least 2"),
    (written("run/generated.json", "{}"), "generated.json: Input should be a valid list"),
    (written("run/generated.json", "[1]"), "generated.json: key 0: must be a mapping"),
    (changed("run/generated.json", "0.facts.true", "x"), "generated.json: key 0.facts.true: Input should be a valid"),
    (written("run/export/bali_ds.json", '{"fingerprints": []}'), "bali_ds.json: key fingerprints: Input should be"),
]
REPLAYS = [
    (written("run/failures/step-00000002.json", "[]"), "step-00000002.json: must be a mapping"),
    (written("run/failures/step-00000002.json", "{}"), "step-00000002.json: key start: Field required"),
    (changed("run/failures/step-00000002.json", "ranks", []), "key ranks: List should have at least 1 item"),
    (changed("run/failures/step-00000002.json", "start.epoch", -1), "key start.epoch: Input should be greater than"),
    (changed("run/failures/step-00000002.json", "start.samples_seen", 10**30), "key start.samples_seen: Input should"),
]
QUESTIONS = {
    "pubmedqa": [
        (written("pubmedqa.json", "[]"), "pubmedqa.json: Input should be a valid dictionary"),
        (changed("pubmedqa.json", "1", 5), "pubmedqa.json: item 1: must be a mapping"),
        (changed("pubmedqa.json", "1.CONTEXTS", "c"), "item 1: key CONTEXTS: Input should be a valid list"),
        (changed("pubmedqa.json", "1.QUESTION", None), "item 1: key QUESTION: Field required"),
        (written("pubmedqa.json", DEEP), "is nested in more than 64 levels"),
        (fifo("pubmedqa.json"), "pubmedqa.json: cannot be read: it is not a regular file"),
    ],
    "bioasq": [
        (written("bioasq.json", "[]"), "bioasq.json: must be a mapping"),
        (written("bioasq.json", '{"questions": {}}'), "bioasq.json: key questions: Input should be a valid list"),
        (changed("bioasq.json", "questions.0.exact_answer", []), "exact_answer: is missing or not a string"),
        (changed("bioasq.json", "questions.0.snippets", [1]), "item 1: key snippets.0: must be a mapping"),
    ],
    "medqa": [
        (written("medqa.jsonl", "{\n"), "medqa.jsonl:1: is not valid JSON"),
        (written("medqa.jsonl", "1\n"), "medqa.jsonl:1: must be a mapping"),
        (replaced("medqa.jsonl", '"answer_idx": "A"', '"answer_idx": "C"'), "answer_idx: 'C' is not an option"),
    ],
    "medmcqa": [(replaced("medmcqa.json", '"cop": 2', '"cop": 9'), "medmcqa.json:1: key cop: Input should be less")],
    "blurb": [(replaced("blurb.json", '"label": "x"', '"label": null'), "blurb.json:1: key label")],
}
LINES = [
    (written("names.txt", "C1\n"), "names.txt:1: expected CUI||name"),
    (written("names.txt", b"\x1f\x8b\x08\x00half"), "names.txt: the compressed data is truncated or damaged"),
    (fifo("names.txt"), "names.txt: cannot be read: it is not a regular file"),
    (endless("names.txt"), "names.txt: cannot be read: it is not a regular file"),
    (written("queries.tsv", "a\tb\n"), "queries.tsv:1: column 'mention' is missing"),
    (written("queries.tsv", "mention\tcui\nx\n"), "queries.tsv:2: has 1 columns, the header has 2"),
    (written("queries.tsv", b"mention\tcui\n\xff\tC1\n"), "is not UTF-8 (invalid start byte); convert the file"),
    (written("queries.tsv", "mention\tcui\n"), "queries.tsv: holds no queries"),
]
HOSTS = [
    (fifo("hostfile"), "hostfile: cannot be read: it is not a regular file"),
    (written("hostfile", "\x1b[2J slots=1\n"), "hostfile:1: '\\x1b[2J' is not a host name"),
    (written("hostfile", b"\xff"), "hostfile: is not UTF-8"),
]
DOCUMENTS = [
    (written("documents.jsonl", "{\n"), "documents.jsonl"),
    (written("documents.jsonl", "[[1]]\n"), "documents.jsonl"),
]
DOWNLOADS = [
    (partial("[]"), "x.part.json: must be a mapping"),
    (partial('{"version": "a\\nb"}'), "x.part.json: key version: String should match pattern"),
    (partial(DEEP), "x.part.json: is nested in more than 64 levels"),
]
ADDRESSES = [
    "file:///etc/passwd", "gopher://host/x", "http://", "http://[::1/x", "http://host:port/x", "http://host:99999/x",
    "http://a\x1b[2J/x", "http://hôst/x", "data://x",
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """How files are damaged, the command that reads them, and a part of its line."""

    damage: Damage
    command: str
    line: str


ROWS = [
    Row(damage, command, line)
    for command, damages in [
        (PLAN, [*RECIPES, *DEEPSPEED]),
        (SHOW_CONCEPT, GRAPHS),
        (STATS, [*INDEXES, *TABLES]),
        (ORDER, ORDERS),
        ("shards show shards 0", SAMPLES),
        ("shards sample shards --samples 20 --out sampled", [(field("offset", 2**40), "the sample table contradicts")]),
        ("shards index shards", REINDEXED),
        (ENCODE, MODELS),
        (LINK, INDEXED_NAMES),
        (CONTEXT, NAME_INDEXES),
        (REPORT, REPORTS),
        (REPLAY, REPLAYS),
        *((questions(task), damages) for task, damages in QUESTIONS.items()),
        (LINKING, LINES),
        (f"{PLAN} --hostfile hostfile", HOSTS),
        (CORPUS, DOCUMENTS),
        ("graph fetch http://127.0.0.1:1/x --out x", DOWNLOADS),
    ]
    for damage, line in damages
] + [
    Row(lambda _: None, f"graph fetch {address} --out x", "is not a plain http, https or ftp") for address in ADDRESSES
]


@pytest.fixture(scope="session")
def whole(tmp_path_factory, graph_directory, tokenizer_directory, concept_names):
    """A directory with one small file or directory of every kind."""
    root = tmp_path_factory.mktemp("whole")
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    shutil.copytree(graph_directory, root / "graph")
    names = [name for names in concept_names.values() for name in names]
    documents = [{"id": number, "text": f"The {name} was found."} for number, name in enumerate(names)]
    (root / "corpus.jsonl").write_text("".join(json.dumps(each) + "\n" for each in documents))
    corpora = [Corpus("jsonl", root / "corpus.jsonl", "dictionary")]
    settings = BuildSettings(max_tokens=48, shard_samples=32, validation=0.2)
    build_shards(corpora, root / "graph", str(tokenizer_directory), root / "shards", settings)
    write_models(root, tokenizer_directory)
    with contextlib.chdir(root), contextlib.redirect_stdout(None):
        for command in (LINK, CONTEXT):  # they keep what they compute beside their input
            assert main(command.split()) == 0
    return root


def write_models(root, tokenizer_directory):
    """Write an encoder with weights, and one without."""
    import torch
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_directory / "tokenizer.json"), model_max_length=40, pad_token="[PAD]",
        unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
        additional_special_tokens=["[E]"],
    )  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64,
    )  # fmt: skip
    for name in ("model", "encoder"):
        tokenizer.save_pretrained(root / name)
        config.save_pretrained(root / name)
    BertModel(config).save_pretrained(root / "model")
    shutil.copyfile(tokenizer_directory / "tokenizer.json", root / "encoder/tokenizer.json")


@pytest.fixture
def root(whole, tmp_path, monkeypatch):
    """A copy of the directory, as the working directory."""
    copy = shutil.copytree(whole, tmp_path / "copy")
    monkeypatch.chdir(copy)
    return copy


@pytest.mark.parametrize(
    "command",
    [PLAN, SHOW_CONCEPT, STATS, ORDER, "shards lint shards", ENCODE, LINK, CONTEXT, REPORT, LINKING, CORPUS],
)
@pytest.mark.usefixtures("root")
def test_the_files_are_sound(command, capsys):
    assert main(command.split()) == 0, capsys.readouterr().err


def test_there_are_enough_rows():
    assert len(ROWS) >= 107


def identified(row: Row) -> str:
    return f"{' '.join(row.command.split()[:2])}: {row.line}"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("row", ROWS, ids=identified)
def test_damage_is_one_line_and_status_two(row, root, capsys):
    row.damage(root)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = main(row.command.split())
    line = capsys.readouterr().err
    assert status == 2, line
    assert line.startswith("bali-ds: ")
    assert row.line in line
    assert is_harmless(line.removesuffix("\n")), line
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1 << 20, f"{grown} KiB"
