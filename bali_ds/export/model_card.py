"""Model card of an exported encoder."""

import json
from collections.abc import Iterator
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

TAGS = ["bali-ds", "biomedical", "entity-linking", "knowledge-graph", "sentence-transformers", "umls"]
USE = """\
## Use

The directory is an ordinary Hugging Face model; the graph is needed for training only. The vector of a mention or
name is {vector}:

```python
import torch
from transformers import AutoModel, AutoTokenizer

texts = ["heart attack", "myocardial infarction"]
tokenizer, model = AutoTokenizer.from_pretrained("DIR"), AutoModel.from_pretrained("DIR", dtype=torch.float32)
{snippet}
```

`SentenceTransformer("DIR").encode(texts)` and `bali_ds.load("DIR").encode(texts)` return the same vectors, and so does
the output `sentence_embedding` of `onnx/model.onnx`, if it was exported. {servers} The pooler, if the architecture has
one, was not trained: transformers reports it as MISSING when it loads the model, and the head of masked language
modeling, which `AutoModelForMaskedLM` reads, as UNEXPECTED. Neither is used for these vectors.
"""
MEAN = {
    "vector": "the mean of the last layer over its tokens, without [CLS] and [SEP]",
    "snippet": """\
batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt", return_special_tokens_mask=True)
weights = (1 - batch.pop("special_tokens_mask")).unsqueeze(-1)
with torch.inference_mode():
    states = model(**batch).last_hidden_state
vectors = torch.nn.functional.normalize((states * weights).sum(dim=1) / weights.sum(dim=1), dim=-1)""",
    "servers": "Servers that pool over all tokens,\n"
    "such as text-embeddings-inference, include [CLS] and [SEP], which costs accuracy.",
}
LAST = {
    "vector": "the last layer's state of its last token, which ends the text",
    "snippet": """\
batch = tokenizer(texts, padding=True, truncation=True, padding_side="right", return_tensors="pt")
last = batch["attention_mask"].sum(dim=1) - 1
with torch.inference_mode():
    states = model(**batch).last_hidden_state
vectors = torch.nn.functional.normalize(states[torch.arange(len(texts)), last], dim=-1)""",
    "servers": "Servers must pool the last token.",
}
ADAPTER = """\
This directory holds a LoRA adapter and no encoder. transformers and sentence-transformers load `{base}` and the adapter
if peft is installed; with another copy of that encoder, use
`peft.PeftModel.from_pretrained(AutoModel.from_pretrained("ENCODER"), "DIR")`. `bali_ds.load` needs an export with
merged weights, which `bali-ds export` writes without `--adapter`.
"""
LICENSE = """\
## License

Weights trained on a knowledge graph and linked text are subject to the terms of these data and to the license of the
encoder that training started from. Models trained on the UMLS Metathesaurus: the U.S. National Library of Medicine
grants the UMLS license to each user, some source vocabularies restrict commercial use and redistribution, and the
Metathesaurus itself must not be redistributed. Check these terms before you share this model. This directory does not
contain names of the graph.
"""
POOLINGS = {
    "first": "the first of its tokens",
    "last": "the last of its tokens",
    "attention": "a learned weighted mean of its tokens (`mention_pooling.safetensors`)",
}


def model_card(description: dict[str, Any], figures: dict[str, Any]) -> str:
    """Return the text of README.md.

    Args:
        description: content of `bali_ds.json`.
        figures: content of `evaluation.json`; may be empty.
    """
    recipe = description["recipe"]
    fingerprints = description["fingerprints"].items()
    counts = description.get("data") or {}
    weights = {name: section["weight"] for name, section in recipe["objective"].items() if section["weight"]}
    facts = [
        f"- trained from: `{recipe['text_encoder']['path']}`",
        f"- trained for: {description['step']:,} steps of {recipe['batch']['passages']} passages",
        f"- objectives and their weights: {', '.join(f'{name} {weight:g}' for name, weight in weights.items())}",
        *(f"- {name} of training and validation: {count:,}" for name, count in counts.items()),
        f"- stored as: {description['dtype']}",
        *(
            [f"- weights averaged with those of: `{start['path']}`, whose share is {start['share']:g}"]
            if (start := description.get("averaged_with"))
            else []
        ),
        *(f"- fingerprint of the {name}: `{value}`" for name, value in fingerprints if value),
    ]
    parts = [
        f"---\n{_front_matter(description, figures).to_yaml()}\n---\n",
        f"# {recipe['name']}\n",
        "A biomedical language model aligned with a knowledge graph by bali-ds, after BALI\n"
        "(Sakhovskiy and Tutubalina, SIGIR 2025, doi 10.1145/3726302.3729901).\n",
        "\n".join(facts) + "\n",
        USE.format(**(LAST if description.get("pooling") == "last" else MEAN)),
    ]
    if description.get("adapter"):
        parts.append(ADAPTER.format(base=recipe["text_encoder"]["path"]))
    if (pooling := description.get("mention_pooling", "mean")) != "mean":
        parts.append(
            f"In training, the vector of a mention in a passage was {POOLINGS[pooling]};\n"
            "`bali_ds.load(DIR).encode_mentions(places)` computes the same.\n"
        )
    if prompt := (recipe.get("text_encoder") or {}).get("query_prompt"):
        parts.append(
            f"Before mentions and questions, not before names, goes the prompt {json.dumps(prompt)}:\n"
            '`SentenceTransformer("DIR").encode_query(texts)` and `bali_ds.load("DIR").encode(texts, query=True)`.\n'
        )
    if markers := description.get("markers"):
        parts.append(
            f"In training, mentions in passages were marked with `{markers[0]}` and `{markers[1]}`;\n"
            "`encode_mentions` inserts these markers around the mention.\n"
        )
    if linking := figures.get("linking"):
        parts.append("## Zero-shot linking\n\n" + "\n".join(_linking_rows(linking)) + "\n")
    recipe_text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    parts += [f"## Recipe\n\n```yaml\n{recipe_text}```\n", LICENSE]
    return "\n".join(parts)


def _front_matter(description: dict[str, Any], figures: dict[str, Any]) -> ModelCardData:
    """Return the metadata that the Hugging Face Hub reads."""
    name = description["recipe"]["name"]
    queries = ((description["recipe"].get("evaluation") or {}).get("linking") or {}).get("queries", "linking queries")
    results = [
        EvalResult(
            task_type="feature-extraction",
            task_name="Zero-shot entity linking",
            dataset_type=queries,
            dataset_name=f"{queries}, {subset}",
            metric_type="accuracy",
            metric_name=f"Acc@1, {subset}",
            metric_value=round(values["acc@1"]["value"], 4),
        )
        for subset, values in ((figures.get("linking") or {}).get("trained") or {}).items()
    ]
    return ModelCardData(
        base_model=description.get("base_model"),
        license="other",
        license_name="terms-of-the-training-data",
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=TAGS,
        model_name=name,
        eval_results=results or None,
    )


def _linking_rows(linking: dict[str, Any]) -> Iterator[str]:
    yield "In percent, with 95 % bootstrap intervals.\n"
    yield "| model | subset | n | Acc@1 | Acc@5 | MRR |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for model in ("untrained", "trained"):
        for subset, values in linking.get(model, {}).items():
            cells = [
                "{:.1f} ({:.1f} to {:.1f})".format(*(100 * values[name][key] for key in ("value", "low", "high")))
                for name in ("acc@1", "acc@5", "mrr")
            ]
            yield f"| {model} | {subset} | {values['n']:,} | " + " | ".join(cells) + " |"
