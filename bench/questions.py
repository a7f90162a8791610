"""Questions about the graph: an untrained and an aligned encoder, a graph embedding, and no pruning.

python bench/questions.py [--data DIR] [--encoder DIR] [--epochs 0.5] [--hops 500] [--context 100]

A twentieth of the graph's pairs is held out. The encoder is aligned on a graph without them (joint objective,
MedMentions, two CPU ranks). A head on its frozen vectors is trained on questions about the other pairs and tested on
the held-out ones. Writes bench/results/questions.json. Interrupted training resumes.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from inputs.medmentions import DATA, FAST, ROOT, bali_ds, build, minilm, train

from bali_ds.evaluation.graph_questions import sample_held_out
from bali_ds.files import write_json
from bali_ds.graph.knowledge_graph import KnowledgeGraph

BUILT = ROOT / "shards" / "built" / "medmentions_held_out"
HELD_OUT = BUILT / "held_out.tsv"


def main() -> None:
    """Build, train, evaluate, print the tables."""
    parser = argparse.ArgumentParser(description="Ask questions that the graph answers.")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--encoder", type=Path, default=minilm())
    parser.add_argument("--epochs", type=float, default=0.5)
    parser.add_argument("--hops", type=int, default=500, help="questions for each number of hops")
    parser.add_argument("--context", type=int, default=100, help="questions for context")
    options = parser.parse_args()
    whole = BUILT / "whole"
    if not whole.exists():
        bali_ds("graph", "build", "--rrf", options.data / "kg/kg_ext_umls_rrf", "--out", whole)
    if not HELD_OUT.exists():
        sample_held_out(KnowledgeGraph.open(whole), HELD_OUT, fraction=0.05, seed=0)
    build(options.data, options.encoder, BUILT, held_out=HELD_OUT)
    models = {"untrained": options.encoder, "aligned": _aligned(options)}
    results: dict[str, Any] = {"epochs": options.epochs}
    for task, count, more in (("multi-hop", options.hops, ["--held-out", HELD_OUT]), ("context", options.context, [])):
        chosen = [word for path in models.values() for word in ("--model", path)]
        told = bali_ds("evaluate", task, *chosen, "--graph", whole, "--questions", str(count), *more, "--json")
        for name, path in models.items():
            told = told.replace(json.dumps(str(path)), json.dumps(name))
        results[task] = json.loads(told)
        write_json(ROOT / "bench" / "results" / "questions.json", results)
    print(_table(results))


def _aligned(options: argparse.Namespace) -> Path:
    """Return the encoder aligned without the held-out facts."""
    name = "questions-aligned"
    changes = [f"name={name}", f"text_encoder.path={options.encoder}", f"epochs={options.epochs}", *FAST]
    data = [f"data.graph={BUILT}/graph", f"data.shards={BUILT}/shards"]
    train(ROOT / "launch/recipes/ablations/joint.yaml", [*changes, *data])
    return ROOT / "runs" / name / "export"


def _table(results: dict[str, Any]) -> str:
    lines = [f"{'questions':<12}{'system':<30}{'hits@1':>10}{'hits@10':>10}{'MRR':>10}"]
    for hops, asked in results["multi-hop"].items():
        for name, row in asked["systems"].items():
            cells = (f"{row[measure]['value']:>10.1%}" for measure in ("hits@1", "hits@10", "mrr"))
            lines.append(f"{hops + ' hops':<12}{name:<30}" + "".join(cells))
    context = results["context"]["systems"]
    budgets = next(iter(context.values()))
    lines.append(f"{'recall at':<42}" + "".join(f"{budget:>10}" for budget in budgets))
    for name, row in context.items():
        lines.append(f"{name:<42}" + "".join(f"{of['recall']['value']:>10.1%}" for of in row.values()))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
