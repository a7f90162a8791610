"""What a new kind of graph encoder takes: a class and a line of a dict (and its name among the kinds of the recipe)."""

import torch

from bali_ds.data.loader import Loader
from bali_ds.model.build_model import build_aligner
from bali_ds.model.graph_encoders import LAYERS, GraphLayer
from bali_ds.objectives.registry import stream_settings
from bali_ds.planning.run_data import RunData


class ToyLayer(GraphLayer):
    """A linear function of the mean of all nodes."""

    uses_relations = False

    def build(self, width, heads, dropout):  # noqa: ARG002
        self.linear = torch.nn.Linear(width, width)

    def update(self, nodes, messages):  # noqa: ARG002
        return self.linear(nodes.mean(dim=0, keepdim=True)).expand_as(nodes)


def test_a_toy_graph_encoder_trains(sample, tmp_path, monkeypatch):
    monkeypatch.setitem(LAYERS, "toy", ToyLayer)
    recipe = sample.recipe(tmp_path)
    # in `GraphEncoderConfig` the name is one word more
    graph_encoder = recipe.graph_encoder.model_copy(update={"kind": "toy"})
    recipe = recipe.model_copy(update={"graph_encoder": graph_encoder})
    data = RunData.open(recipe)
    aligner = build_aligner(recipe, 2 * data.graph.num_relations).train()
    optimizer = torch.optim.SGD(aligner.parameters(), lr=0.01)
    loader = Loader(data.shards, data.graph, stream_settings(recipe), global_batch=16)
    for _ in range(2):
        loss, _ = aligner(next(loader).micro_batches)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        gradients = [parameter.grad for parameter in aligner.graph.parameters()]
        assert loss.isfinite()
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
        assert aligner.graph.get_parameter("layers.0.linear.weight").grad.abs().max() > 0
