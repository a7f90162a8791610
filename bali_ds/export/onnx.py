"""ONNX graph of an exported encoder, verified against torch."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bali_ds.errors import InputError, missing_package
from bali_ds.inference.encoder import load

NAME = Path("onnx") / "model.onnx"
TOLERANCE = 1e-4


class _Pooled(nn.Module):
    """The encoder with the same inputs and outputs for all architectures.

    Token ids and mask in; last hidden state, and one unit vector of each text out: the mean over its own tokens, or the
    state of its last token.
    """

    def __init__(self, model: nn.Module, special_ids: list[int], pooling: str) -> None:
        super().__init__()
        self.model = model
        self.special_ids = special_ids
        self.pooling = pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        states: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooling == "last":
            # by gather: an index of range(len(states)) would fix the size of the batch
            last = (attention_mask.sum(dim=1) - 1)[:, None, None].expand(-1, 1, states.shape[2])
            return states, nn.functional.normalize(states.gather(1, last).squeeze(1), dim=-1)
        own = attention_mask
        for number in self.special_ids:
            own = own * (input_ids != number)
        # a text without tokens of its own is the mean over its special tokens
        weights = torch.where(own.sum(dim=1, keepdim=True) > 0, own, attention_mask).unsqueeze(-1).to(states.dtype)
        mean = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        return states, nn.functional.normalize(mean, dim=-1)


def write_onnx(directory: Path) -> float:
    """Write `onnx/model.onnx` into an exported directory: float32, dynamic shapes.

    Its outputs are `last_hidden_state` [n, L, d] and `sentence_embedding` [n, d], the vectors of `bali_ds.load`.

    Returns:
        the largest absolute difference from torch, over batches of other shapes than the traced one.

    Raises:
        InputError: onnx, onnxscript or onnxruntime is not installed, or the outputs differ from those of torch.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx.export needs it
    except ModuleNotFoundError as error:
        raise missing_package(error, "onnx") from error
    encoder = load(directory, dtype=torch.float32)
    # fused attention branches on the values of the mask, which a graph cannot do
    encoder.model.set_attn_implementation("eager")
    special_ids = sorted(set(encoder.tokenizer("")["input_ids"]))
    model, out = _Pooled(encoder.model, special_ids, encoder.pooling).eval(), directory / NAME
    out.parent.mkdir()
    vocabulary, longest = len(encoder.tokenizer), encoder.max_tokens
    dynamic = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    torch.onnx.export(
        model, _inputs(2, 7, vocabulary), out, input_names=["input_ids", "attention_mask"],
        output_names=["last_hidden_state", "sentence_embedding"], dynamic_shapes=(dynamic, dynamic), dynamo=True,
        external_data=False, verbose=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    worst = 0.0
    for rows, width in ((1, 3), (5, min(24, longest))):
        tokens, mask = _inputs(rows, width, vocabulary)
        with torch.inference_mode():
            states, vectors = (each.numpy() for each in model(tokens, mask))
        found = session.run(None, {"input_ids": tokens.numpy(), "attention_mask": mask.numpy()})
        worst = max(worst, float(np.abs(found[0] - states)[mask.bool().numpy()].max()))
        worst = max(worst, float(np.abs(found[1] - vectors).max()))
    if not worst <= TOLERANCE:
        raise InputError(
            f"{out}: output differs from torch by {worst:.1e}, more than {TOLERANCE:.0e}; export without --onnx"
        )
    return worst


def _inputs(rows: int, width: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Return token ids [rows, width] and a mask without the last token of every row but the first."""
    tokens = torch.randint(vocabulary, (rows, width), generator=torch.Generator().manual_seed(width))
    mask = torch.ones_like(tokens)
    mask[1:, -1] = 0
    return tokens, mask
