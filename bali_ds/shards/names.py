"""The table of names: every name of the graph in tokens, so that training never tokenises."""

from pathlib import Path

import numpy as np

from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.files import published_file
from bali_ds.graph.store import KnowledgeGraph
from bali_ds.shards.layout import NPY_HEADER, npy_bytes, npy_header, token_dtype

_BATCH = 8192


def write_names(directory: Path, graph: KnowledgeGraph, tokenizer: Tokenizer, max_name_tokens: int) -> None:
    """Publish names.tokens.npy and names.offsets.npy, streaming over the graph.

    A name is cut to `max_name_tokens`; one that yields no token becomes one unknown token.
    """
    lengths = np.zeros(graph.num_names + 1, np.int64)
    with published_file(directory / "names.tokens.npy") as stream:
        stream.write(bytes(NPY_HEADER))
        for start in range(0, graph.num_names, _BATCH):
            stop = min(start + _BATCH, graph.num_names)
            ids = tokenizer.encode_ids([graph.name(number) for number in range(start, stop)])
            cut = [name[:max_name_tokens] or [tokenizer.unk_id] for name in ids]
            lengths[start + 1 : stop + 1] = [len(name) for name in cut]
            flat = [token for name in cut for token in name]
            stream.write(np.array(flat, token_dtype(tokenizer.vocab_size)).tobytes())
        offsets = np.cumsum(lengths)
        stream.seek(0)
        stream.write(npy_header(token_dtype(tokenizer.vocab_size), (int(offsets[-1]),)))
    with published_file(directory / "names.offsets.npy") as stream:
        stream.write(npy_bytes(offsets))
