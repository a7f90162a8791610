"""Tiny decoders with random weights and tokenizers of their own, as the directories that their families publish."""

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, MistralConfig, Qwen2Config
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

SHAPE = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 512,
}  # fmt: skip
FAMILIES = {"llama": LlamaConfig, "qwen": Qwen2Config, "mistral": MistralConfig, "gemma": GemmaConfig}
# Qwen has no token to begin a text, and only Qwen and Gemma name one to pad.
TOKENS = {
    "llama": {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
    "qwen": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "mistral": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "gemma": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
}


def write_decoder(directory: Path, family: str, texts: list[str], **changes: object) -> Path:
    """Write config.json, the weights of the causal language model, and a tokenizer of these texts."""
    special = list(dict.fromkeys(TOKENS[family].values()))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if family == "qwen":  # transformers' class for it splits in its own way, whatever the file says
        split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    directory.mkdir(parents=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512} | TOKENS[family]
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(1)
    config = FAMILIES[family](vocab_size=tokenizer.get_vocab_size(), pad_token_id=None, **(SHAPE | changes))
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory
