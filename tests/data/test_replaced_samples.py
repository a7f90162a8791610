"""Which samples are replaced, and by which, follows from each sample alone: the same for any ranks and workers.

`plain_fault` looks at one sample at a time and shares no code with the stream.
"""

import shutil
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bali_ds.data.batch_sampler import BatchSampler, RankSlice
from bali_ds.data.ego_graphs import find_views
from bali_ds.data.loader import Loader
from bali_ds.data.mixture import Mixture
from bali_ds.data.reader import SampleReader
from bali_ds.data.sample_validation import REASONS
from bali_ds.data.sampler import Position
from bali_ds.data.settings import StreamSettings
from bali_ds.errors import InputError
from bali_ds.randomness import below, derive
from bali_ds.shards.lint import sample_findings
from bali_ds.shards.sample import Sample
from bali_ds.shards.shard_set import ShardSet
from tests.data.test_bad_samples import overwrite, rewrite_table
from tests.data.test_loader import rows, steps
from tests.data.test_sources import change_index

BATCH, STEPS, TRAIN = 16, 6, 100
CONCEPTS = 60
SETTINGS = StreamSettings(seed=5, bad_samples=1.0, with_graph=False)
FIELDS = ("offset", "tokens", "mentions", "edges")
MENDED = {"does not begin and end with the special tokens", "a concept has more edges than the stored fan-out"}
"""What `shards lint` finds and the stream can live with."""

IDS = st.one_of(st.integers(-2 * CONCEPTS, 3 * CONCEPTS), st.sampled_from([-(2**31), 2**31 - 1, 1 << 20, -(1 << 20)]))
DAMAGES = st.lists(
    st.one_of(
        st.tuples(st.integers(0, TRAIN - 1), st.sampled_from(("mentions", "edges")), st.integers(0, 30), IDS),
        # the concept of an edge, and of a mention
        st.tuples(st.integers(0, TRAIN - 1), st.just("edges"), st.integers(0, 10).map(lambda n: 3 * n), IDS),
        st.tuples(st.integers(0, TRAIN - 1), st.just("mentions"), st.integers(0, 5).map(lambda n: 3 * n + 2), IDS),
        st.tuples(st.integers(0, TRAIN - 1), st.just("tokens"), st.integers(0, 39), st.integers(0, 2**16 - 1)),
        st.tuples(
            st.integers(0, TRAIN - 1),
            st.sampled_from(FIELDS),
            st.none(),
            st.sampled_from([-5, 0, 1, 3, 512, 1536, 2**31 - 1, 2**62, 2**63 - 512, 2**63 - 1024, -(2**63)]),
        ),
    ),
    min_size=1,
    max_size=30,
)


def damaged(shards, directory, damages):
    """Copy a shard set and change numbers in it; what was damaged is always as large as before."""
    copy = ShardSet.open(shutil.copytree(shards.path, directory / "shards"))
    for row, member, place, value in sorted(damages, key=lambda damage: damage[2] is None):
        if place is None:
            bits = np.iinfo(shards.samples.dtype[member])
            rewrite_table(copy, row, **{member: min(max(value, bits.min), bits.max)})
            continue
        size = int(shards.samples[row][member]) * (1 if member == "tokens" else 3)
        if size:
            overwrite(copy, row, member, place % size, value, "<u2" if member == "tokens" else "<i4")
    return ShardSet.open(copy.path)


def plain_arrays(shards, row):
    """The arrays of a sample where the table says they are, as lists; None where they cannot be there."""
    offset, tokens, mentions, edges = (int(shards.samples[row][field]) for field in FIELDS)
    shard = next(
        shard for shard, first in zip(shards.shards, shards.starts, strict=False) if row < first + shard.samples
    )
    tar = (shards.path / shard.name).read_bytes()
    if not 2 <= tokens <= shards.index["max_tokens"] or min(offset, mentions, edges) < 0 or offset % 512:
        return None
    arrays, at = [], offset
    for dtype, count in (("<u2", tokens), ("<i4", 3 * mentions), ("<i4", 3 * edges)):
        data = at + 512
        size = 128 + count * np.dtype(dtype).itemsize
        at = data + -(-size // 512) * 512
        if at > len(tar) - 512:
            return None
        if tar[data : data + 4] != b"\x93NUM":
            return None
        arrays.append(np.frombuffer(tar, dtype, count, data + 128).tolist())
    return arrays[0], *(list(zip(*[iter(flat)] * 3, strict=True)) for flat in arrays[1:])


def plain_fault(shards, row):
    """What is wrong with one sample, as a place in REASONS."""
    arrays = plain_arrays(shards, row)
    if arrays is None:
        return 1
    tokens, mentions, edges = arrays
    if any(token >= 200 for token in tokens):
        return 2
    if not all(1 <= begin < end <= len(tokens) - 1 for begin, end, _ in mentions):
        return 3
    if not all(0 <= concept < CONCEPTS for *_, concept in mentions):
        return 4
    order = []
    for *_, concept in mentions:
        if concept not in order:
            order.append(concept)
    place = 0
    for concept, relation, neighbor in edges:
        if concept not in order[place:] or not 0 <= relation < 10 or not 0 <= neighbor < CONCEPTS:
            return 5
        place = order.index(concept)
    return 0


def expected_steps(shards, wanted):
    """For each step {row: (row taken in its place, reason)} of the rows that have to be replaced."""
    faults = {}

    def fault(row):
        if row not in faults:
            faults[row] = plain_fault(shards, row)
        return faults[row]

    made = []
    for batch in wanted:
        replaced = {}
        for row in filter(fault, batch):
            taken, attempt = row, 0
            while fault(taken):
                key = derive("substitute", SETTINGS.seed, np.array([0]), np.array([row]), attempt)
                taken, attempt = int(below(key, np.array([TRAIN]))[0]), attempt + 1
            replaced[row] = (taken, REASONS[fault(row)])
        made.append(replaced)
    return made


def replaced_in(parts):
    """The replacements of each step, from the steps of all ranks."""
    return [{row: (by, reason) for part in step for row, by, reason in part.replaced} for step in parts]


def made_by(ranks, workers):
    """The first steps as so many ranks and workers share them, several steps at once as in a run."""
    parts = [[] for _ in range(STEPS)]
    for source in ranks:
        for worker in range(max(workers, 1)):
            mine = range(worker, STEPS, max(workers, 1))
            for number, step in zip(mine, source.take(mine), strict=True):
                parts[number].append(step)
    return replaced_in(parts)


@pytest.fixture(scope="module")
def wanted(data):
    """The rows of each batch as long as all samples are sound."""
    return [rows(step) for step in steps(data, STEPS, settings=SETTINGS, global_batch=BATCH)]


# an edge of a concept that the graph has not: in one batch its key was that of the next sample's concept
@settings(max_examples=20, deadline=None)
@example(damages=[(row, "edges", 0, CONCEPTS + row % CONCEPTS) for row in range(0, TRAIN, 2)])
@example(damages=[(row, "mentions", 2, CONCEPTS + 7 * row % CONCEPTS) for row in range(0, TRAIN, 3)])
@example(damages=[(row, "edges", 0, -1) for row in range(0, TRAIN, 2)])
@given(damages=DAMAGES)
def test_each_sample_is_judged_alone(data, wanted, damages):
    with tempfile.TemporaryDirectory() as directory:
        shards = damaged(data[0], Path(directory), damages)
        expected = expected_steps(shards, wanted)
        for world_size in (1, 2, 4, 8):
            shares = [RankSlice(BATCH, 1, rank, world_size) for rank in range(world_size)]
            ranks = [BatchSampler(shards, data[1], SETTINGS, share, Position()) for share in shares]
            for workers in (0, 2):
                assert made_by(ranks, workers) == expected, f"{world_size} ranks, {workers} workers"


@settings(max_examples=60, deadline=None)
@given(damages=DAMAGES)
def test_lint_finds_what_the_stream_replaces(data, damages):
    with tempfile.TemporaryDirectory() as directory:
        shards = damaged(data[0], Path(directory), damages)
        for row in {row for row, *_ in damages}:
            if (arrays := plain_arrays(shards, row)) is None:
                continue
            tokens, mentions, edges = arrays
            triples = [np.array(each, np.int32).reshape(-1, 3) for each in (mentions, edges)]
            sample = Sample("a_000", np.array(tokens, np.uint16), *triples, {"document": "a", "passage": 0})
            findings = set(sample_findings(sample, shards, None)) - MENDED
            assert bool(findings) == bool(plain_fault(shards, row)), findings


@pytest.mark.parametrize("world_size", [1, 4])
def test_real_workers_replace_the_same(data, wanted, tmp_path, world_size):
    damages = [(row, "edges", 0, CONCEPTS + row % CONCEPTS) for row in range(0, TRAIN, 2)]
    shards = damaged(data[0], tmp_path, [*damages, (7, "offset", None, 2**63 - 512)])
    expected = expected_steps(shards, wanted)
    assert sum(map(len, expected)) > 20
    parts = [[] for _ in range(STEPS)]
    for rank in range(world_size):
        with Loader(
            shards, data[1], SETTINGS, global_batch=BATCH, rank=rank, world_size=world_size, workers=2
        ) as loader:
            for number, step in enumerate(islice(loader, STEPS)):
                parts[number].append(step)
    assert replaced_in(parts) == expected


def test_views_of_samples_never_meet_whatever_their_ids(data):
    """Ids at both ends of int32: the keys of a sample stay its own, and none overflows."""
    samples = SampleReader(Mixture.of(data[0])).read(np.arange(TRAIN))
    mentions, edges = samples.mentions.copy(), samples.edges.copy()
    owners = np.repeat(np.arange(TRAIN), samples.mention_counts)
    mentions[:, 2] = np.where(owners % 2, -(2**31), 2**31 - 1)
    views = find_views(samples._replace(mentions=mentions, edges=edges[:0], edge_counts=0 * samples.edge_counts))
    assert views.samples.tolist() == np.flatnonzero(samples.mention_counts).tolist()
    assert views.concept_ids.tolist() == [(2**31 - 1, -(2**31))[owner % 2] for owner in views.samples.tolist()]


@pytest.mark.parametrize("name", ["concepts", "names", "relations"])
def test_an_index_cannot_move_the_bounds(data, tmp_path, name):
    copy = shutil.copytree(data[0].path, tmp_path / "shards")
    graph = dict(data[0].index["graph"])
    change_index(copy, graph=graph | {name: graph[name] + 10**6})
    with pytest.raises(InputError, match=rf"says that the graph has \d+ {name}, but .* has {graph[name]};"):
        Loader(ShardSet.open(copy), data[1], SETTINGS, global_batch=BATCH)
