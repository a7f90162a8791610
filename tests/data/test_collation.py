from dataclasses import replace

import numpy as np
import pytest
import torch

from bali_ds.data.batch import as_tensors
from bali_ds.data.collator import Collator
from bali_ds.data.evaluation_batches import evaluation_batches
from bali_ds.data.sampler import SampleIndices
from bali_ds.data.settings import StreamSettings
from bali_ds.errors import InputError
from tests.data.oracle import expected_sample, found_samples
from tests.data.test_loader import same
from tests.packs import rows_of


def indices_of(rows, epoch):
    return SampleIndices(np.array(rows, np.int64), np.full(len(rows), epoch))


def batch_of(data, settings, rows, epoch=0):
    [(arrays, _)] = Collator.of(*data, settings).collate(indices_of(rows, epoch))
    return as_tensors(arrays)


@pytest.mark.parametrize("rows", [[3], [7, 2, 90, 41, 13, 60, 61, 5], list(range(50, 99)), [4, 4, 4]], ids=len)
@pytest.mark.parametrize(
    ("fan_out", "markers", "prompt"), [(0, None, ()), (1, (1, 0), (9, 8, 7)), (3, None, (5,)), (20, (0, 1), ())]
)
def test_batch_equals_the_slow_plain_collator(data, rows, fan_out, markers, prompt):
    shards, graph = data
    settings = StreamSettings(
        seed=5, fan_out=fan_out, mention_masking=0.4, name_masking=0.4, markers=markers, prompt=prompt
    )
    batch = batch_of(data, settings, rows, epoch=2)
    expected = [expected_sample(shards, graph, settings, row, 2) for row in rows]
    passages, views = found_samples(batch)
    assert batch.sample_rows.tolist() == rows

    unordered = [(passage["inputs"], passage["labels"]) for passage in passages]
    for sample in expected:
        unordered.remove((sample["inputs"], sample["labels"]))
    assert unordered == []

    expected_views = [(sample, view) for sample in expected for view in sample["views"]]
    assert len(views) == len(expected_views)
    for found, (sample, view) in zip(views, expected_views, strict=True):
        flat = found.pop("flat")
        places = view.pop("places")
        assert found == view
        begin = flat[0] - places[0]
        assert flat == [begin + place for place in places]
        holders = [passage["inputs"] for passage in passages if passage["begin"] == begin]
        assert holders == [sample["inputs"]]


def test_each_distinct_name_is_encoded_once(data):
    batch = batch_of(data, StreamSettings(name_masking=0.5), range(80))
    names = [tuple(row) for row in rows_of(batch.names)]
    used = batch.node_names.unique().tolist()
    masked = [names[row] for row in used if set(names[row][1:-1]) == {4}]
    assert len(masked) == len(set(masked)) > 1
    assert used == list(range(len(names)))
    assert batch.node_names.shape[0] > len(names)


def test_shapes_dtypes_and_order(data):
    batch = batch_of(data, StreamSettings(), range(40))
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    tensors += [*vars(batch.passages).values(), *vars(batch.names).values()]
    assert all(tensor.dtype == torch.int64 for tensor in tensors)
    assert len(rows_of(batch.passages)) == 40
    views = batch.mention_views
    assert bool((views[1:] >= views[:-1]).all())
    assert views.unique().tolist() == list(range(batch.num_views))
    assert len(batch.passages.input_ids) > int(batch.mention_tokens.max())


def test_nothing_is_padded(data):
    """Every token of the samples is read once, and nothing else."""
    batch = batch_of(data, StreamSettings(token_masking=0.0, mention_masking=0.0), range(80))
    tokens = [token for row in range(80) for token in data[0].arrays(row)[0].tolist()]
    assert sorted(batch.passages.input_ids.tolist()) == sorted(tokens)
    assert int(batch.names.lengths.sum()) == len(batch.names.input_ids)


def test_a_dummy_stands_in_for_names_where_there_is_not_a_single_mention(data):
    shards, _ = data
    bare = next(row for row in range(100) if shards.samples[row]["mentions"] == 0)
    batch = batch_of(data, StreamSettings(), [bare])
    assert len(rows_of(batch.passages)) == 1
    assert rows_of(batch.names) == [[2, 3]]
    assert batch.num_views == 0
    assert batch.edge_index.shape == (2, 0)


def test_another_graph_is_refused_with_both_fingerprints(data, tmp_path):
    from tests.data.conftest import write_graph

    shards, graph = data
    other = write_graph(tmp_path / "other", seed=9)
    with pytest.raises(InputError) as caught:
        Collator.of(shards, other, StreamSettings())
    assert graph.fingerprint in str(caught.value)
    assert other.fingerprint in str(caught.value)


def test_evaluation_batches_are_unmasked_and_in_order(data):
    shards, graph = data
    settings = StreamSettings(token_masking=0.9, mention_masking=0.9, name_masking=0.9)
    batches = list(evaluation_batches(shards, graph, settings, batch_size=5))
    rows = [row for batch in batches for row in batch.sample_rows.tolist()]
    assert rows == list(shards.split("validation")) == list(range(100, 117))
    plain = replace(settings, token_masking=0.0, mention_masking=0.0, name_masking=0.0)
    for batch in batches:
        passages, views = found_samples(batch)
        expected = [expected_sample(shards, graph, plain, row, 0) for row in batch.sample_rows.tolist()]
        inputs = [passage["inputs"] for passage in passages]
        assert all(shards.arrays(sample["row"])[0].tolist() in inputs for sample in expected)
        assert [view["names"] for view in views] == [view["names"] for sample in expected for view in sample["views"]]
        assert batch.labels.shape == (0,)
    assert len(list(evaluation_batches(shards, graph, settings, batch_size=5, limit=7))) == 2


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 24])
def test_batches_made_together_equal_batches_made_alone(data, micro_batches):
    collator = Collator.of(*data, StreamSettings(mention_masking=0.4, name_masking=0.4))
    rows = np.arange(53, 29, -1)
    together = [batch for batch, _ in collator.collate(indices_of(rows, 1), micro_batches)]
    alone = [collator.collate(indices_of(part, 1))[0][0] for part in np.split(rows, micro_batches)]
    assert all(same(as_tensors(a), as_tensors(b)) for a, b in zip(together, alone, strict=True))
