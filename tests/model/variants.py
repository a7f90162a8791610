"""Every encoder, every way of taking names and every objective at least once, in as few models as they fit into."""

ALL = {key: {"weight": 1.0} for key in ("contrastive", "masked_language_model", "synonym_alignment", "graph_infomax")}
VARIANTS: dict[str, dict] = {
    "everything": {
        "text_encoder": {"pooling": "attention", "view": "mention", "markers": ["(", ")"]},
        "objective": {
            **ALL,
            "contrastive": {"learn_temperature": True, "communication_dtype": "bf16"},
            "link_prediction": {"weight": 1.0},
            "dual": {"weight": 1.0, "layers": 1, "duality": 0.1, "dropout": 0.0},
        },
        "batch": {"passages": 16, "micro_batches": 2},
    },
    "frozen": {
        "text_encoder": {"pooling": "first", "frozen_embeddings": True, "frozen_layers": 1},
        "graph_encoder": {"kind": "graphsage", "names": "no_gradient"},
        "objective": {"link_prediction": {"weight": 1.0, "kind": "transe"}},
    },
    "cached": {
        "text_encoder": {"gradient_checkpointing": True, "layer": 1, "attention": "eager"},
        "graph_encoder": {"kind": "compgcn", "names": "cached", "refresh_every": 2},
        "objective": {"link_prediction": {"weight": 1.0, "kind": "rotate"}},
    },
    "learned": {
        "graph_encoder": {"names": "learned", "layers": 1},
        "objective": {"contrastive": {"kind": "sigmoid"}, "graph_infomax": {"weight": 0.1}},
    },
    "linearized": {
        "graph_encoder": {"kind": "linearized"},
        "objective": {
            **ALL,
            "graph_infomax": {"weight": 0.0},
            "graph_language_model": {"weight": 0.5},
            "synonym_alignment": {"weight": 1.0, "pairs": "mentions"},
        },
    },
    "lora": {
        "text_encoder": {"lora": {"rank": 4, "modules": ["query", "value"]}},
        "objective": {"contrastive": {"weight": 0.0}},
    },
    "alignment": {"objective": {"masked_language_model": {"weight": 0.0}, "contrastive": {"negatives": "rank"}}},
}


def variant(sample, runs, name, **changes):
    """The recipe of a variant, without dropout."""
    sections = {key: dict(value) for key, value in VARIANTS[name].items()}
    sections["text_encoder"] = {"path": str(sample.encoder), "dropout": 0.0, **sections.get("text_encoder", {})}
    sections["graph_encoder"] = {"dropout": 0.0, **sections.get("graph_encoder", {})}
    return sample.recipe(runs, name=name, **(sections | changes))
