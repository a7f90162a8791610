"""The exported encoder as an ONNX graph, checked against torch before anybody gets it."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bali_ds.errors import InputError
from bali_ds.inference.encoder import load

NAME = Path("onnx") / "model.onnx"
TOLERANCE = 1e-4


class _States(nn.Module):
    """Token ids and mask in, last hidden state out; nothing else, so that every architecture looks the same."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states


def write_onnx(directory: Path) -> float:
    """Write `onnx/model.onnx` into an exported directory: float32, any batch and length, `last_hidden_state` out.

    Returns:
        the largest difference from torch over batches of other shapes than the traced one.

    Raises:
        InputError: onnx, onnxscript or onnxruntime is not installed, or the graph computes something else than torch.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  what torch writes graphs with
    except ImportError as error:
        raise InputError(f"--onnx: {error.name} is not installed; pip install 'bali-ds[onnx]'") from error
    encoder = load(directory, dtype=torch.float32)
    # Fused attention branches on the values of the mask, which a graph cannot.
    encoder.model.set_attn_implementation("eager")
    model, out = _States(encoder.model).eval(), directory / NAME
    out.parent.mkdir()
    vocabulary, longest = len(encoder.tokenizer), encoder.max_tokens
    dynamic = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    torch.onnx.export(
        model, _inputs(2, 7, vocabulary), out, input_names=["input_ids", "attention_mask"],
        output_names=["last_hidden_state"], dynamic_shapes=(dynamic, dynamic), dynamo=True, external_data=False,
        verbose=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    worst = 0.0
    for rows, width in ((1, 3), (5, min(24, longest))):
        tokens, mask = _inputs(rows, width, vocabulary)
        with torch.inference_mode():
            expected = model(tokens, mask).numpy()
        found = session.run(None, {"input_ids": tokens.numpy(), "attention_mask": mask.numpy()})[0]
        worst = max(worst, float(np.abs(found - expected)[mask.bool().numpy()].max()))
    if not worst <= TOLERANCE:
        raise InputError(f"{out}: differs from torch by {worst:.1e}, more than {TOLERANCE:.0e}; export without --onnx")
    return worst


def _inputs(rows: int, width: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Token ids [rows, width] and a mask that hides one token of every row but the first."""
    tokens = torch.randint(vocabulary, (rows, width), generator=torch.Generator().manual_seed(width))
    mask = torch.ones_like(tokens)
    mask[1:, -1] = 0
    return tokens, mask
