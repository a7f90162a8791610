"""Linking with an exported model: its graph views, its memory and the averaged export, from the command line, too."""

import argparse
import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForMaskedLM

from bali_ds.cli import main
from bali_ds.cli.scoring import weights_as_options
from bali_ds.errors import InputError
from bali_ds.evaluation.concept_ranking import rank_by_scores
from bali_ds.evaluation.linking_data import Queries
from bali_ds.evaluation.scoring_choice import CONTEXT, GRAPH, SPELLING, choose_scoring, parts_to_choose
from bali_ds.export.export_run import export_run
from bali_ds.inference.aligned_model import load_aligned
from bali_ds.inference.concept_dictionary import graph_dictionary
from bali_ds.inference.concept_scorer import Scoring
from bali_ds.inference.context_linker import ContextLinker
from bali_ds.inference.encoder import load
from bali_ds.inference.graph_views import open_graph_views
from bali_ds.inference.scoring_grid import scoring_grid
from bali_ds.model.build_model import build_aligner
from bali_ds.model.text_encoder import load_text_encoder
from bali_ds.planning.run_data import RunData
from tests.model.test_export_of_kinds import write_run

TEXT = "Nausea and abdominal pain after colorectal carcinoma."
CORPUS = f"1|t|{TEXT}\n1\t0\t6\tNausea\tX\tQ1\n1\t11\t25\tabdominal pain\tX\tQ2\n"


@pytest.fixture(scope="module")
def run(sample, tmp_path_factory):
    recipe = sample.recipe(tmp_path_factory.mktemp("runs"))
    data = RunData.open(recipe)
    aligner = build_aligner(recipe, 2 * data.graph.num_relations).eval()
    torch.manual_seed(0)
    for parameter in aligner.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    write_run(recipe, aligner)
    return recipe, data.graph


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "model"
    export_run(run[0].directory, path, "float32")
    return path


def test_graph_views_are_those_of_the_neighborhoods_with_preferred_names(run, exported, tmp_path):
    _, graph = run
    encoder, (aligner, recipe) = load(exported), load_aligned(exported)
    table = open_graph_views(exported, encoder, graph, index=tmp_path / "views")
    degrees = np.diff(graph.edge_offsets.astype(np.int64))
    few = np.flatnonzero((degrees > 0) & (degrees <= recipe.data.fan_out))[:20]
    assert len(few) > 5
    for concept in [*few.tolist(), int(np.argmin(degrees))]:
        stored = slice(*graph.edge_offsets[concept : concept + 2].tolist())
        neighbors, relations = graph.edge_targets[stored].tolist(), graph.edge_relations[stored]
        names = [graph.preferred_name(each) for each in (concept, *neighbors)]
        features = torch.from_numpy(encoder.encode(names, normalize=False))
        inward = torch.tensor([range(1, len(names)), [0] * len(neighbors)], dtype=torch.int64).reshape(2, -1)
        kinds = torch.from_numpy(relations.astype(np.int64))
        inverse = (kinds + graph.num_relations) % (2 * graph.num_relations)
        with torch.no_grad():
            nodes = aligner.graph(features, torch.cat([inward, inward.flip(0)], dim=1), torch.cat([kinds, inverse]))
        expected = torch.nn.functional.normalize(nodes[0], dim=0).numpy()
        np.testing.assert_allclose(table[concept], expected, atol=1e-4)
    mapped = open_graph_views(exported, encoder, graph, index=tmp_path / "views")
    assert not mapped.flags.owndata
    np.testing.assert_array_equal(mapped, table)
    (tmp_path / "views/index.json").write_text(json.dumps({"graph": "other"}))
    with pytest.raises(InputError, match="another graph or model"):
        open_graph_views(exported, encoder, graph, index=tmp_path / "views")


def test_a_remembered_mention_is_linked_to_its_concept(run, exported):
    _, graph = run
    dictionary = graph_dictionary(graph)
    cui = dictionary.cuis[7]
    memory = (["qqq zzz"], [(cui,)], [("the qqq zzz", 4, 11)])
    linker = ContextLinker(
        exported, dictionary, Scoring(context=0.5, graph=0.2, memory=0.1), graph=graph, memory=memory
    )
    ((best, second),) = linker.link(["QQQ zzz"], [("the QQQ zzz", 4, 11)], top=2)
    assert best.cui == cui
    assert best.name in graph.names(int(graph.lookup([cui])[0]))
    assert best.score > second.score
    with pytest.raises(InputError, match="--with-graph"):
        ContextLinker(exported, dictionary, Scoring(graph=0.2))


def test_the_weights_with_the_most_right_links_are_chosen(run, exported):
    _, graph = run
    dictionary, random = graph_dictionary(graph), np.random.default_rng(0)
    concepts = random.choice(graph.num_concepts, 24, replace=False).tolist()
    mentions = [graph.preferred_name(concept)[::2] for concept in concepts]
    gold = [(graph.cui(concept),) for concept in concepts]
    gold[0] = ("UNKNOWN:1",)
    places = [(f"about {mention} here", 6, 6 + len(mention)) for mention in mentions]
    queries = Queries(mentions, gold, {}, places)
    linker = ContextLinker(exported, dictionary, parts_to_choose(Scoring(context=0.5, graph=0.2)), graph=graph)
    chosen, accuracy = choose_scoring(linker, queries)
    counts = {}
    for scoring in scoring_grid(CONTEXT, GRAPH, spelling=SPELLING):
        linker.scoring = scoring
        counts[scoring] = int((rank_by_scores(linker, queries) == 1).sum())
    assert len(set(counts.values())) > 3
    assert counts[chosen] == max(counts.values()) == round(accuracy * 24)


def test_a_memory_that_is_wrong_is_not_chosen(run, exported):
    _, graph = run
    dictionary = graph_dictionary(graph)
    names = [graph.preferred_name(concept) for concept in range(4)]
    gold = [(graph.cui(concept),) for concept in range(4)]
    linker = ContextLinker(exported, dictionary, parts_to_choose(Scoring(memory=0.0)), memory=(names, gold[::-1], []))
    chosen, accuracy = choose_scoring(linker, Queries(names, gold, {}))
    assert chosen.memory is None
    assert accuracy == 1
    options = argparse.Namespace(in_context=False, with_graph=None, memory="pubtator:x")
    assert weights_as_options(chosen, options) == f"--spelling {chosen.spelling:g}, without --memory"
    options.memory = None
    assert weights_as_options(chosen, options) == f"--spelling {chosen.spelling:g}"


def test_the_command_line_links_a_corpus_in_context_and_evaluates_it(run, exported, tmp_path, capsys):
    _, graph = run
    corpus, dictionary = tmp_path / "corpus.txt", tmp_path / "names.txt"
    names = [(graph.cui(concept), graph.preferred_name(concept)) for concept in range(30)]
    dictionary.write_text("".join(f"{cui}||{name}\n" for cui, name in names))
    corpus.write_text(CORPUS.replace("Q1", names[3][0]).replace("Q2", names[4][0]))
    parts = ["--in-context", "--with-graph", str(graph.path), "--memory", f"pubtator:{corpus}"]
    common = ["--model", str(exported), "--dictionary", str(dictionary), *parts, "--json"]
    capsys.readouterr()
    assert main(["link", *common, "--top", "3", f"pubtator:{corpus}"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert [first["mention"], second["mention"]] == ["Nausea", "abdominal pain"]
    assert (second["document"], second["start"], second["end"]) == ("1", 11, 25)
    assert [each["candidates"][0]["cui"] for each in (first, second)] == [names[3][0], names[4][0]]
    assert len(first["candidates"]) == 3
    assert main(["evaluate", "linking", *common, "--queries", f"pubtator:{corpus}"]) == 0
    assert json.loads(capsys.readouterr().out)["all"]["acc@1"]["value"] == 1.0
    without_texts = tmp_path / "mentions.tsv"
    without_texts.write_text(f"mention\tcui\nNausea\t{names[3][0]}\n")
    chosen = ["--queries", f"pubtator:{corpus}", "--choose-on"]
    assert main(["evaluate", "linking", *common, *chosen, str(without_texts)]) == 2
    assert "the mentions of --choose-on have no texts" in capsys.readouterr().err
    assert main(["evaluate", "linking", *common, *chosen, f"pubtator:{corpus}"]) == 0
    # without training, rounding decides whether a remembered mention needs a bonus
    weights = r"--context-share 0 --graph-share 0 --memory-bonus 0(\.1)? --spelling 0"
    assert re.search(rf"model: {weights}: Acc@1 100\.0% on pubtator:", capsys.readouterr().err)
    assert main(["link", *common, str(corpus)]) == 2
    assert "write FORMAT:PATH" in capsys.readouterr().err


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_an_export_is_averaged_with_the_start(run, exported, sample, tmp_path, share):
    recipe, _ = run
    torch.manual_seed(1)
    AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(sample.encoder)).save_pretrained(tmp_path / "start")
    main(["export", str(recipe.directory), "--out", str(tmp_path / "mean"), "--dtype", "float32",
          "--average-with", str(tmp_path / "start"), "--start-share", str(share)])  # fmt: skip
    start = load_text_encoder(str(tmp_path / "start"), seed=0).encoder.state_dict()
    trained, mean = (load_file(path / "model.safetensors") for path in (exported, tmp_path / "mean"))
    for name, tensor in mean.items():
        own = name.removeprefix("bert.")
        averaged = (1 - share) * trained[name] + share * start[own] if name.startswith("bert.") else trained[name]
        torch.testing.assert_close(tensor, averaged, atol=1e-6, rtol=1e-6)
    assert f"start`, whose share is {share}" in (tmp_path / "mean/README.md").read_text()
    assert load(tmp_path / "mean").passage_tokens == 128
