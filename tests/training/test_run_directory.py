"""The directory of a run belongs to one recipe, and its data match the recipe's encoder."""

import json
import shutil

import numpy as np
import pytest
import yaml

from bali_ds.errors import InputError
from bali_ds.objectives.registry import stream_settings
from bali_ds.planning.run_data import RunData
from bali_ds.training.run_directory import prepare


def test_another_recipe_is_refused_and_a_default_that_came_later_is_not(sample, tmp_path, capsys):
    recipe = sample.recipe(tmp_path)
    prepare(recipe)
    written = recipe.directory / "recipe.yaml"
    older = yaml.safe_load(written.read_text())
    del older["fault_tolerance"], older["objective"]["dual"]
    written.write_text(yaml.safe_dump(older))
    prepare(recipe)
    checkpoints = recipe.checkpoints.model_copy(update={"every": 7})
    capsys.readouterr()
    prepare(recipe.model_copy(update={"steps": 5, "checkpoints": checkpoints}))
    assert set(capsys.readouterr().out.splitlines()) == {
        f"checkpoints.every: {recipe.checkpoints.every} before, 7 now",
        f"steps: {recipe.steps} before, 5 now",
    }
    with pytest.raises(InputError, match="was started with seed: 29, now it is 30"):
        prepare(recipe.model_copy(update={"seed": 30}))
    assert yaml.safe_load(written.read_text())["steps"] == 5
    assert (recipe.directory / "encoder" / "config.json").exists()


@pytest.mark.parametrize("key", ["vocab_size", "mask_id", "special_ids"])
def test_an_index_that_describes_the_tokenizer_wrongly_is_refused(sample, tmp_path, key):
    copy = shutil.copytree(sample.shards, tmp_path / "shards")
    index = json.loads((copy / "index.json").read_text())
    index["tokenizer"][key] = {"vocab_size": 2**31 - 1, "mask_id": 1, "special_ids": []}[key]
    (copy / "index.json").write_text(json.dumps(index))
    if key == "vocab_size":  # its token ids would take four bytes
        names = np.load(copy / "names.tokens.npy")
        np.save(copy / "names.tokens.npy", names.astype("<i4"))
    with pytest.raises(InputError, match=rf"index\.json: says that {key} of the tokenizer is .*; rebuild it"):
        RunData.open(sample.recipe(tmp_path, data={"graph": sample.graph, "shards": str(copy)}))


def test_an_encoder_has_embeddings_for_all_tokens(sample, tmp_path):
    small = shutil.copytree(sample.encoder, tmp_path / "small")
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] - 1}))
    with pytest.raises(InputError, match=r"its tokenizer has an id of 2999, but the model has 2999 embeddings"):
        RunData.open(sample.recipe(tmp_path, text_encoder={"path": str(small)}))


def test_shards_of_another_graph_are_refused_before_the_model_is_built(sample, graph_directory, tmp_path):
    with pytest.raises(InputError, match="was built from the graph"):
        RunData.open(sample.recipe(tmp_path, data={"graph": graph_directory, "shards": str(sample.shards)}))


def test_passages_longer_than_the_encoder_reads_are_refused(sample, tmp_path):
    config = json.loads((sample.encoder / "config.json").read_text())
    short = tmp_path / "short"
    shutil.copytree(sample.encoder, short)

    def opened(positions, **changes):
        (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": positions}))
        return RunData.open(sample.recipe(tmp_path / "runs", text_encoder={"path": str(short), **changes}))

    shards = opened(512).shards
    assert shards.index["max_tokens"] == 128
    table = shards.sets[0].samples
    longest = int(max(row["tokens"] + 2 * row["mentions"] for row in table))
    opened(128)
    with pytest.raises(InputError, match=r"passages of up to 128 tokens, and .*short reads 127; build the shards"):
        opened(127)
    opened(longest, markers=("(", ")"))
    with pytest.raises(InputError, match=rf"up to {longest} tokens, markers included, and .* reads {longest - 1};"):
        opened(longest - 1, markers=("(", ")"))
    opened(136, query_prompt="find the concept: ")
    with pytest.raises(InputError, match=r"up to 128 tokens, and .* reads 127 after the prompt;"):
        opened(135, query_prompt="find the concept: ")
    with pytest.raises(InputError, match=r"'\[M\]' is not in its vocabulary; use two tokens that are"):
        stream_settings(sample.recipe(tmp_path, text_encoder={"path": str(short), "markers": ("(", "[M]")}))
