"""Writes a small BERT as a Hugging Face directory without weights: configuration and a new WordPiece vocabulary."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import BertWordPieceTokenizer
from wordpiece import train_wordpiece

VOCABULARY_SIZE = 3000
MAX_TOKENS = 160
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_encoder(out: Path, texts: Iterable[str]) -> None:
    """Train the vocabulary on `texts` and write the directory `out`."""
    out.mkdir(exist_ok=True)
    vocabulary = train_wordpiece(texts, VOCABULARY_SIZE, SPECIAL)
    wordpiece = BertWordPieceTokenizer({token: number for number, token in enumerate(vocabulary)}, lowercase=True)
    wordpiece.save(str(out / "tokenizer.json"))
    config = {
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "vocab_size": len(vocabulary),
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "max_position_embeddings": MAX_TOKENS,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    tokens = {f"{name}_token": token for name, token in zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL, strict=True)}
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": MAX_TOKENS, **tokens}
    for name, content in (
        ("config.json", config),
        ("tokenizer_config.json", settings),
        ("special_tokens_map.json", tokens),
    ):
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
