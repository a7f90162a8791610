"""Tiny encoders of the families that the field uses, each with a tokenizer of its kind, with random weights."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertTokenizer,
    DebertaV2Config,
    DebertaV2Tokenizer,
    EsmConfig,
    EuroBertConfig,
    ModernBertConfig,
    MPNetConfig,
    MPNetTokenizer,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaTokenizer,
)

from bali_ds.corpus.tokenizer import Tokenizer
from tests.conftest import REPOSITORY

POSITIONS = 64
"""Tokens that each encoder reads, special tokens included."""
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_VOCABULARY = 400
_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def _texts() -> list[str]:
    lines = (REPOSITORY / "shards/sample/corpus.pubtator").read_text(encoding="utf-8").splitlines()
    return [line.split("|", 2)[2] for line in lines[:400] if line[8:11] in ("|t|", "|a|")]


def _trained(tokenizer: Backend, trainer: Any) -> Backend:
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def _wordpiece(special: Iterable[str], *, lowercase: bool) -> dict[str, int]:
    tokenizer = Backend(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=_VOCABULARY, special_tokens=list(special), show_progress=False, continuing_subword_prefix="##"
    )
    return _trained(tokenizer, trainer).get_vocab()


def _bytes(special: Iterable[str]) -> Backend:
    tokenizer = Backend(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, special_tokens=list(special), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    return _trained(tokenizer, trainer)


def _unigram(special: Iterable[str], unknown: str) -> list[tuple[str, float]]:
    tokenizer = Backend(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=_VOCABULARY, special_tokens=list(special), unk_token=unknown, show_progress=False
    )
    trained = _trained(tokenizer, trainer)
    return [(token, score) for token, score in json.loads(trained.to_str())["model"]["vocab"]]


def _framed(tokenizer: Backend, first: str, last: str) -> Backend:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (first, last)],
    )
    return tokenizer


def _bert(*, lowercase: bool) -> tuple[Any, Any]:
    vocabulary = _wordpiece(_BERT, lowercase=lowercase)
    return BertTokenizer(vocab=vocabulary, do_lower_case=lowercase), _config(BertConfig, vocabulary, pad="[PAD]")


def _roberta(*, trimmed: bool) -> tuple[Any, Any]:
    model = json.loads(_bytes(_FAIRSEQ).to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = RobertaTokenizer(vocab=model["vocab"], merges=merges, trim_offsets=trimmed)
    return tokenizer, _config(RobertaConfig, model["vocab"], positions=POSITIONS + 2)


def _xlm_roberta() -> tuple[Any, Any]:
    vocabulary = _unigram(_FAIRSEQ, "<unk>")
    return XLMRobertaTokenizer(vocab=vocabulary), _config(XLMRobertaConfig, vocabulary, positions=POSITIONS + 2)


def _deberta_v2() -> tuple[Any, Any]:
    vocabulary = _unigram(_BERT, "[UNK]")
    attention = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
    return DebertaV2Tokenizer(vocab=vocabulary, unk_id=1), _config(
        DebertaV2Config, vocabulary, pad="[PAD]", **attention
    )


def _mpnet() -> tuple[Any, Any]:
    """MPNet's vocabulary holds the special tokens of BERT too, as ordinary ones."""
    vocabulary = _wordpiece(("<s>", "<pad>", "</s>", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<mask>"), lowercase=True)
    return MPNetTokenizer(vocab=vocabulary), _config(MPNetConfig, vocabulary, positions=POSITIONS + 2)


def _modernbert() -> tuple[Any, Any]:
    tokenizer = _framed(_bytes(_BERT), "[CLS]", "[SEP]")
    ids = {f"{role}_token_id": tokenizer.token_to_id(token) for role, token in _named(_BERT).items()}
    ids |= {"bos_token_id": ids["cls_token_id"], "eos_token_id": ids["sep_token_id"]}
    del ids["unk_token_id"], ids["mask_token_id"]
    special = {f"{role}_token": token for role, token in _named(_BERT).items()}
    config = _config(ModernBertConfig, tokenizer.get_vocab(), pad="[PAD]", **ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special), config


def _eurobert() -> tuple[Any, Any]:
    """EuroBERT names its tokens as Llama does, and its output weights are not those of the embeddings."""
    special = ("<|begin_of_text|>", "<|end_of_text|>", "<|pad|>", "<|mask|>")
    tokenizer = _framed(_bytes(special), *special[:2])
    roles = dict(zip(("bos", "eos", "pad", "mask"), special, strict=True))
    ids = {f"{role}_token_id": tokenizer.token_to_id(token) for role, token in roles.items()}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{role}_token": token for role, token in roles.items()}
    )
    config = _config(EuroBertConfig, tokenizer.get_vocab(), num_key_value_heads=2, tie_word_embeddings=False, **ids)
    return fast, config


def _esm() -> tuple[Any, Any]:
    special = ("<cls>", "<pad>", "<eos>", "<unk>", "<mask>")
    tokenizer = _framed(_bytes(special), "<cls>", "<eos>")
    roles = dict(zip(("cls", "pad", "eos", "unk", "mask"), special, strict=True))
    config = _config(
        EsmConfig, tokenizer.get_vocab(), positions=POSITIONS + 2, pad_token_id=1, mask_token_id=4,
        position_embedding_type="rotary", token_dropout=True, emb_layer_norm_before=False,
    )  # fmt: skip
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{role}_token": token for role, token in roles.items()}
    )
    return fast, config


def _named(bert: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(("pad", "unk", "cls", "sep", "mask"), bert, strict=True))


def _config(kind: Any, vocabulary: Any, *, positions: int = POSITIONS, pad: str = "", **settings: Any) -> Any:
    if pad:
        settings.setdefault("pad_token_id", 0)
    return kind(vocab_size=len(vocabulary), max_position_embeddings=positions, **SIZES, **settings)


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "bert_uncased": lambda: _bert(lowercase=True),
    "bert_cased": lambda: _bert(lowercase=False),
    "roberta_trimmed": lambda: _roberta(trimmed=True),
    "roberta_untrimmed": lambda: _roberta(trimmed=False),
    "deberta_v2": _deberta_v2,
    "xlm_roberta": _xlm_roberta,
    "mpnet": _mpnet,
    "modernbert": _modernbert,
    "eurobert": _eurobert,
    "esm": _esm,
}
"""For each family, a function that returns a tokenizer and a configuration."""


def write_family(name: str, directory: Path) -> Path:
    """Write an encoder of a family, with weights drawn from a fixed seed, and return its directory."""
    tokenizer, config = FAMILIES[name]()
    torch.manual_seed(len(name))
    model = AutoModelForMaskedLM.from_config(config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def first_documents(file: Path, count: int) -> None:
    """Write the first documents of the sample data set to a file, in its format."""
    documents = (REPOSITORY / "shards/sample/corpus.pubtator").read_text(encoding="utf-8").split("\n\n")
    file.write_text("\n\n".join(documents[:count]) + "\n", encoding="utf-8")


def vector_by_hand(encoder: Any, tokenizer: Tokenizer, text: str, longest: int) -> torch.Tensor:
    """The unit vector of a text: the mean state of its first tokens, as shards have them, between the special ones."""
    ids = tokenizer.encode(text).ids[: longest - 2].tolist()
    rows = torch.tensor([[tokenizer.cls_id, *ids, tokenizer.sep_id]])
    with torch.no_grad():
        states = encoder(input_ids=rows, attention_mask=torch.ones_like(rows)).last_hidden_state[0, 1:-1]
    mean = states.float().mean(dim=0)
    return mean / mean.norm()
