"""The files that make a Hugging Face encoder a sentence-transformers model."""

from pathlib import Path

from bali_ds.files import write_json

MODULES = (
    ("", "sentence_transformers.models.Transformer"),
    ("1_Pooling", "sentence_transformers.models.Pooling"),
    ("2_Normalize", "sentence_transformers.models.Normalize"),
)


def write_sentence_modules(out: Path, width: int) -> None:
    """Write modules.json and the settings of its modules: mean over tokens, unit length.

    The mean of sentence-transformers counts [CLS] and [SEP] too, so its vectors differ slightly from those of
    `bali_ds.load`, which leaves them out as training does.
    """
    rows = [
        {"idx": place, "name": str(place), "path": path, "type": kind} for place, (path, kind) in enumerate(MODULES)
    ]
    write_json(out / "modules.json", rows)
    write_json(out / "sentence_bert_config.json", {"max_seq_length": None, "do_lower_case": False})
    write_json(out / "1_Pooling" / "config.json", {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True})
    (out / "2_Normalize").mkdir()
