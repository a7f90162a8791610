"""Further views of the contrastive loss against a slow plain reading, and the joint loss against the dense formula."""

import numpy as np
import pytest
import torch

from bali_ds.config import Recipe
from bali_ds.config.objectives import ObjectiveConfig
from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.data.loader import Loader
from bali_ds.data.sampling import open_source
from bali_ds.data.siblings import sample_siblings, share_names
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.model.build_model import build_aligner
from bali_ds.objectives.alignment_views import sample_other_concepts
from bali_ds.objectives.registry import stream_settings
from bali_ds.planning.run_data import RunData
from bali_ds.randomness import derive
from bali_ds.shards.shard_set import Names
from tests.packs import rows_of

CLS, SEP, MASK = 2, 3, 4
VIEWS = {"further_views": ["mention", "name"], "other_concepts": 2}


@pytest.fixture(scope="module")
def built(sample, tmp_path_factory):
    recipe = sample.recipe(tmp_path_factory.mktemp("runs"))
    objective = ObjectiveConfig.model_validate({"contrastive": VIEWS, "masked_language_model": {"weight": 0}})
    recipe = recipe.model_copy(update={"objective": objective})
    return recipe, RunData.open(recipe)


def steps(built, number, *, passages=24, **options):
    recipe, data = built
    with Loader(data.shards, data.graph, stream_settings(recipe), global_batch=passages, **options) as loader:
        return [next(loader) for _ in range(number)]


def test_views_are_mentions_names_and_neighborhoods_of_drawn_concepts(built):
    _, data = built
    graph, (table, offsets) = data.graph, data.shards.names
    batch = steps(built, 1)[0].micro_batches[0]
    own, names = batch.parts["contrastive"], rows_of(batch.names)
    views = batch.num_views
    concepts = own.concept_ids.tolist()
    assert len(own.rows) == 4 * views
    assert len(own.targets) == 2 * views
    assert concepts[:views] == concepts[3 * views : 4 * views] == batch.concept_ids.tolist()
    drawn = concepts[views : 3 * views]
    assert drawn == concepts[4 * views :]
    assert not set(drawn) <= set(batch.concept_ids.tolist())

    def spelled(concept):
        ids = range(*graph.name_offsets[concept : concept + 2].tolist())
        return [[CLS, *table[offsets[name] : offsets[name + 1]].tolist(), SEP] for name in ids]

    for row, concept in zip(own.rows[: 3 * views].tolist(), concepts, strict=False):
        assert names[row] in spelled(concept)
    mentioned = [data.shards.sets[0].arrays(row) for row in batch.sample_rows.tolist()]
    for row, concept in zip(own.rows[3 * views :].tolist(), concepts[3 * views :], strict=False):
        words = [
            [CLS, *tokens[first : min(last, first + 32)].tolist(), SEP]
            for tokens, mentions, _ in mentioned
            for first, last, linked in mentions.tolist()
            if linked == concept
        ]
        assert names[row] in words
    messages = list(zip(*own.edge_index.tolist(), own.edge_relations.tolist(), strict=True))
    hidden = 0
    for target, concept in zip(own.targets.tolist(), drawn, strict=True):
        facts = [(source, relation) for source, node, relation in messages if node == target]
        known = slice(*graph.edge_offsets[concept : concept + 2].tolist())
        assert len(facts) == min(3, known.stop - known.start)
        stored = list(zip(graph.edge_relations[known].tolist(), graph.edge_targets[known].tolist(), strict=True))
        for source, relation in facts:
            near = [neighbor for kind, neighbor in stored if kind == relation]
            assert names[own.node_rows[source]] in [name for neighbor in near for name in spelled(neighbor)]
        name = names[own.node_rows[target]]
        masked = set(name[1:-1]) == {MASK}
        hidden += masked
        assert masked or name in spelled(concept)
        assert not masked or known.stop - known.start >= 2
    assert 0.2 < hidden / len(drawn) < 0.6
    masks = [len(name) for name in names if set(name[1:-1]) == {MASK}]
    assert len(masks) <= 2 * len(set(masks))  # one for the nodes of passages, one for those of drawn concepts


def test_the_prompt_goes_before_mentions_and_not_before_names(built):
    recipe, data = built
    encoder = recipe.text_encoder.model_copy(update={"query_prompt": "find the concept: "})
    recipe = recipe.model_copy(update={"text_encoder": encoder})
    plain, prompted = (steps((each, data), 1)[0].micro_batches[0] for each in (built[0], recipe))
    prompt = Tokenizer.load(encoder.path).encode("find the concept:").ids.tolist()
    first = 3 * plain.num_views  # names and drawn concepts, then mentions
    for batch, before in ((plain, []), (prompted, prompt)):
        names, rows = rows_of(batch.names), batch.parts["contrastive"].rows.tolist()
        read = [names[row] for row in rows]
        if batch is plain:
            expected = read
        assert read[:first] == expected[:first]
        assert read[first:] == [[CLS, *before, *each[1:]] for each in expected[first:]]
    # no mean includes the prompt: the mean of the places of tokens tells which were taken
    text = build_aligner(recipe, 2 * data.graph.num_relations).text
    names = prompted.names
    means = text.pool(names.positions[:, None].float().expand(-1, 2), names)[prompted.parts["contrastive"].rows]
    lengths = [len(each) - 2 for each in expected]
    begins = [1] * first + [1 + len(prompt)] * (len(lengths) - first)
    middles = [begin + (length - 1) / 2 for begin, length in zip(begins, lengths, strict=True)]
    torch.testing.assert_close(means[:, 0], torch.tensor(middles))


def test_views_do_not_depend_on_ranks_or_workers(built):
    whole = steps(built, 2)
    halves = [steps(built, 2, rank=rank, world_size=2) for rank in (0, 1)]
    worker = steps(built, 2, workers=1)
    for number in range(2):
        own = whole[number].micro_batches[0].parts["contrastive"]
        assert torch.equal(own.node_rows, worker[number].micro_batches[0].parts["contrastive"].node_rows)
        parts = [half[number].micro_batches[0].parts["contrastive"] for half in halves]
        assert sorted(own.concept_ids.tolist()) == sorted(each for part in parts for each in part.concept_ids.tolist())


def test_the_joint_loss_compares_all_views_and_trains_every_module(built):
    recipe, data = built
    aligner = build_aligner(recipe, 2 * data.graph.num_relations, data.shards).train()
    for module in aligner.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    aligner.graph.layers.apply(lambda module: setattr(module, "dropout", 0.0) if hasattr(module, "dropout") else None)
    batch = steps(built, 1, passages=6)[0].micro_batches[0]
    encoded = aligner.encode(batch)
    further, ids = encoded.kept["contrastive"]
    views = torch.nn.functional.normalize(torch.cat([encoded.text, encoded.graph, further]), dim=1)
    labels = torch.cat([encoded.text_concept_ids, encoded.concept_ids, ids])
    similarities = (views @ views.T).double() / recipe.objective.contrastive.temperature
    same = labels[:, None] == labels
    negatives = similarities.masked_fill(same, -torch.inf).logsumexp(dim=1, keepdim=True)
    losses = torch.logaddexp(similarities, negatives) - similarities
    expected = losses[same & ~torch.eye(len(labels), dtype=torch.bool)].mean()
    loss, _ = aligner([batch])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    loss.backward()
    for name, parameter in aligner.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"contrastive": {"kind": "clip", "further_views": ["name"]}}}, "need kind ntxent"),
        (
            {"objective": {"contrastive": VIEWS}, "graph_encoder": {"names": "no_gradient"}},
            "set graph_encoder.names to gradient",
        ),
        (
            {"objective": {"contrastive": VIEWS}, "graph_encoder": {"kind": "linearized"}},
            "other_concepts and siblings need another",
        ),
    ],
)
def test_settings_that_cannot_have_further_views_are_refused(changes, message):
    values = {"name": "x", "data": {"graph": "g", "shards": "s"}, "text_encoder": {"path": "p"}, "steps": 1}
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate(values | changes)


def test_losses_have_the_constants_of_their_sources():
    kinds = {"sigmoid": 0.1, "multi_similarity": 1 / 50, "ntxent": 0.07}
    for kind, temperature in kinds.items():
        settings = ObjectiveConfig.model_validate({"contrastive": {"kind": kind}}).contrastive
        assert settings.temperature == pytest.approx(temperature)
    given = ObjectiveConfig.model_validate({"contrastive": {"kind": "multi_similarity", "temperature": 0.5}})
    assert given.contrastive.temperature == 0.5


def test_drawn_concepts_are_uniform_over_the_graph(built):
    recipe, data = built
    source = open_source(data.shards, data.graph, stream_settings(recipe))
    keys = derive(1, np.arange(20 * data.graph.num_concepts))
    drawn = sample_other_concepts(keys, np.zeros(keys.size, np.int64), source, others=1, siblings=0).concept_ids
    counts = np.bincount(drawn, minlength=data.graph.num_concepts)
    assert counts.min() > 0
    assert abs(counts.var() / 20 - 1) < 0.25


def test_no_concepts_are_drawn_where_none_are_asked_for(built, monkeypatch):
    recipe, data = built
    source = open_source(data.shards, data.graph, stream_settings(recipe))
    monkeypatch.delattr(KnowledgeGraph, "named_concepts")  # which reads the whole graph
    keys = derive(1, np.arange(5))
    drawn = sample_other_concepts(keys, np.zeros(5, np.int64), source, others=0, siblings=0)
    assert drawn.concept_ids.size == drawn.ego_graphs.num_facts == drawn.node_names.size == 0


def names_and_facts(data, concept):
    """The token sequences of a concept's names, and its facts as (relation, neighbor) as read from it."""
    graph, (table, offsets) = data.graph, data.shards.names
    names = range(*graph.name_offsets[concept : concept + 2].tolist())
    facts = slice(*graph.edge_offsets[concept : concept + 2].tolist())
    pairs = zip(graph.edge_relations[facts].tolist(), graph.edge_targets[facts].tolist(), strict=True)
    return {tuple(table[offsets[name] : offsets[name + 1]].tolist()) for name in names}, set(pairs)


def test_siblings_share_a_fact_and_no_name_and_are_drawn_where_there_are_some(built):
    recipe, data = built
    source = open_source(data.shards, data.graph, stream_settings(recipe))
    known = [names_and_facts(data, concept) for concept in range(data.graph.num_concepts)]
    concept_ids = np.tile(np.arange(data.graph.num_concepts), 50)
    keys = derive(3, np.arange(concept_ids.size))
    drawn = sample_siblings(concept_ids, keys, source)
    for concept, sibling in zip(concept_ids.tolist(), drawn.tolist(), strict=True):
        if sibling >= 0:
            (names, facts), (other_names, other_facts) = known[concept], known[sibling]
            assert sibling != concept
            assert facts & other_facts
            assert other_names
            assert not names & other_names
    lonely = np.array([
        not any(facts & other_facts and other_names and not names & other_names
                for other, (other_names, other_facts) in enumerate(known) if other != concept)
        for concept, (names, facts) in enumerate(known)
    ])  # fmt: skip
    assert 0 < lonely.sum() < lonely.size
    assert (drawn[lonely[concept_ids]] < 0).all()
    assert (drawn[~lonely[concept_ids]] >= 0).mean() > 0.5
    # each alone as all together: nothing depends on the rest of a batch
    one_by_one = [sample_siblings(concept_ids[row : row + 1], keys[row : row + 1], source)[0] for row in range(100)]
    assert one_by_one == drawn[:100].tolist()


def test_siblings_follow_the_concepts_of_the_whole_graph(built):
    recipe, data = built
    source = open_source(data.shards, data.graph, stream_settings(recipe))
    concept_ids = np.arange(data.graph.num_concepts)
    keys = derive(5, concept_ids)
    without = sample_other_concepts(keys, concept_ids, source, others=2, siblings=0).concept_ids.reshape(-1, 2)
    both = sample_other_concepts(keys, concept_ids, source, others=1, siblings=2).concept_ids.reshape(-1, 3)
    assert (both[:, 0] == without[:, 0]).all()
    shared = np.mean([
        bool(names_and_facts(data, concept)[1] & names_and_facts(data, sibling)[1])
        for concept, siblings in zip(concept_ids.tolist(), both[:, 1:].tolist(), strict=True) for sibling in siblings
    ])  # fmt: skip
    assert shared > 0.5
    objective = ObjectiveConfig.model_validate(
        {"contrastive": {"other_concepts": 1, "siblings": 2}, "masked_language_model": {"weight": 0}}
    )
    batch = steps((recipe.model_copy(update={"objective": objective}), data), 1)[0].micro_batches[0]
    assert len(batch.parts["contrastive"].targets) == 3 * batch.num_views


def test_names_are_shared_if_all_tokens_are_equal_in_order():
    # concepts: 5 6 | 6 5 and 5 6 | 5 | no name | 7, and 5
    table = Names(np.array([5, 6, 6, 5, 5, 6, 5, 7, 5], np.int64), np.array([0, 2, 4, 6, 7, 8, 9], np.int64))
    offsets = np.array([0, 1, 3, 4, 4, 6])
    pairs = [(0, 1, True), (0, 2, False), (1, 2, False), (2, 4, True), (0, 3, False), (3, 3, False), (0, 4, False)]
    first, second, expected = map(list, zip(*pairs, strict=True))
    for one, other in ((first, second), (second, first)):
        assert share_names(np.array(one), np.array(other), offsets, table).tolist() == expected
