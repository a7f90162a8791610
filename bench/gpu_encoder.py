"""Parts of gpu.py for the text encoder alone: attention of packed sequences, a whole pass, the exported encoder."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from bali_ds.data.batch import PackedSequences
from bali_ds.inference.encoder import load
from bali_ds.model.aligner import Aligner
from bali_ds.model.fused_layer import PackedAttention, fused_states
from bali_ds.model.packed_attention import attention_arguments, packed_attention
from bali_ds.planning.flops import StepFlops
from bench.gpu_bench import BERT_BASE, LAYER_CODE, TINY, Bench, Figures
from tests.packs import random_pack

PASSAGES, PASSAGE_TOKENS, NAMES = 256, 128, 760  # a micro-batch; its names have 3 to 8 tokens
SMALL_PASSAGES, SMALL_NAMES = 4, 12
LENGTHS, LONG = (3, 5, 9, 17, 64, 128, 128), (3, 20, 200, 300)
BF16 = torch.bfloat16
_FLOPS_PER_PAIR = 12  # of attention, forward and backward, for each feature of a layer and pair of tokens


def attention(bench: Bench) -> Figures:
    """Attention of packed sequences against float64, and the time of one layer of BERT-base, in bfloat16."""
    return {"errors": _attention_errors(bench), "seconds": _attention_seconds(bench)}


def _attention_errors(bench: Bench) -> dict[str, float]:
    torch.manual_seed(0)
    arguments = attention_arguments(
        [random_pack(*LENGTHS).to(torch.device(bench.device))], on_gpu=bench.device == "cuda"
    )
    inputs = _inputs(bench, sum(LENGTHS), heads=4)
    values = _attend(inputs, arguments, dropout=0.0)
    gradient = torch.randn_like(values)
    values.backward(gradient)

    exact = [each.detach().double().requires_grad_() for each in inputs]
    parts = zip(*(each.split(LENGTHS, dim=2) for each in exact), strict=True)
    alone = torch.cat([F.scaled_dot_product_attention(*part).transpose(1, 2) for part in parts], dim=1)
    alone.backward(gradient.double())
    pairs = {"values": (values.detach(), alone.detach())} | {
        name: (mine.grad, true.grad) for name, mine, true in zip(("query", "key", "value"), inputs, exact, strict=True)
    }
    errors = {name: float((mine.double() - true).norm() / true.norm()) for name, (mine, true) in pairs.items()}
    assert max(errors.values()) < 2**-7, errors  # weights and their derivatives are rounded to eight bits
    return errors


def _attention_seconds(bench: Bench) -> dict[str, float]:
    """Return seconds forward and backward under dropout: as training calls it, and on a GPU FlashAttention for all."""
    packs = _packs(bench)
    arguments = attention_arguments(packs, on_gpu=bench.device == "cuda")
    ways = {"packed": arguments}
    if bench.device == "cuda":
        ways["flash"] = arguments | {"tiles": None}
    inputs = _inputs(bench, sum(len(pack.input_ids) for pack in packs), heads=12)
    gradient = torch.randn_like(inputs[0].transpose(1, 2))

    def work(arguments: dict[str, Any]) -> None:
        torch.autograd.grad(_attend(inputs, arguments, dropout=0.1), inputs, gradient)

    clock = bench.kernel_seconds if bench.device == "cuda" else bench.seconds
    return {name: clock(lambda way=way: work(way)) for name, way in ways.items()}  # type: ignore[misc]


def _attend(inputs: list[Tensor], arguments: dict[str, Any], *, dropout: float) -> Tensor:
    return packed_attention(nn.Module(), *inputs, None, dropout=dropout, **arguments)[0]


def _inputs(bench: Bench, tokens: int, *, heads: int) -> list[Tensor]:
    """Return query, key and value of heads of width 64, bfloat16 [1, h, T, 64]."""
    states = [torch.randn(1, tokens, heads, 64, device=bench.device, dtype=torch.bfloat16) for _ in range(3)]
    return [each.transpose(1, 2).requires_grad_() for each in states]


def _packs(bench: Bench) -> list[PackedSequences]:
    torch.manual_seed(0)
    passages, names = (SMALL_PASSAGES, SMALL_NAMES) if bench.small else (PASSAGES, NAMES)
    lengths = [PASSAGE_TOKENS] * passages, torch.randint(3, 9, (names,)).tolist()
    return [random_pack(*each).to(torch.device(bench.device)) for each in lengths]


def encoder(bench: Bench) -> Figures:
    """Forward and backward pass of BERT-base in bfloat16 over packed sequences: gradients, time, FLOPs utilization."""
    figures: Figures = {"errors": _gradient_errors(bench)}
    for code in LAYER_CODE if bench.device == "cuda" else ("eager",):
        aligner, packs = _encoder(bench, code), _packs(bench)
        counter = StepFlops.of(aligner)
        figures["tokens"] = tokens = sum(len(pack.input_ids) for pack in packs)
        pairs = sum(int((pack.lengths**2).sum()) for pack in packs)
        operations = tokens * counter.encoder + pairs * counter.layers * counter.width * _FLOPS_PER_PAIR
        seconds = bench.seconds(lambda aligner=aligner, packs=packs: _pass(aligner, packs))  # type: ignore[misc]
        figures[code] = {"seconds": seconds, **bench.utilization(operations, seconds)}
    return figures


def _encoder(bench: Bench, code: str) -> Aligner:
    """Return an aligner whose layers have one kind of code; its weights are the same for every kind."""
    aligner, loader = bench.aligner(bench.recipe("encoder", TINY if bench.small else BERT_BASE, precision="bf16"))
    loader.close()
    LAYER_CODE[code](aligner.text)
    return aligner


def _gradient_errors(bench: Bench) -> dict[str, float]:
    """Return relative errors of the gradients of each kind of code against those of the layers of transformers."""
    gradients = {code: _gradients(_encoder(bench, code), _packs(bench)) for code in LAYER_CODE}
    plain = gradients.pop("eager")
    errors = {code: float((each - plain).norm() / plain.norm()) for code, each in gradients.items()}
    # every layer rounds to eight bits in both, in another order; a missing gradient is off by far more
    assert max(errors.values()) < 2**-4, errors
    return errors


def _pass(aligner: Aligner, packs: list[PackedSequences]) -> None:
    aligner.zero_grad(set_to_none=True)
    states = aligner.text.hidden_states(packs)
    torch.stack([each.float().square().mean() for each in states]).sum().backward()


def _gradients(aligner: Aligner, packs: list[PackedSequences]) -> Tensor:
    """Return the gradients of a pass without dropout, float32 [parameters]."""
    aligner.eval()
    _pass(aligner, packs)
    aligner.train()
    parameters = aligner.text.encoder.parameters()
    return torch.cat([each.grad.float().flatten() for each in parameters if each.grad is not None])


def layer(bench: Bench) -> Figures:
    """The fused layer in bfloat16 against transformers' in float64, and the time of its kernels; needs a GPU."""
    if bench.device == "cpu":
        return {}
    return {"errors": {str(lengths): layer_errors(lengths) for lengths in (LENGTHS, LONG)}, "seconds": _kernels(bench)}


def layer_errors(lengths: tuple[int, ...]) -> dict[str, float]:
    """Return relative errors of the fused layer of BERT-base and of its gradients, for sequences of some lengths."""
    torch.manual_seed(0)
    config = BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    mine = BertLayer(config).cuda().bfloat16()
    exact = copy.deepcopy(mine).double()
    arguments = attention_arguments([random_pack(*lengths).to(torch.device("cuda"))], on_gpu=True)
    states = torch.randn(1, sum(lengths), config.hidden_size, device="cuda", dtype=BF16, requires_grad=True)
    true_states = states.detach().double().requires_grad_()
    out = fused_states(mine, states, **arguments)
    true_out = torch.cat([exact(part)[0] for part in true_states.split(lengths, dim=1)])
    gradient = torch.randn_like(out)
    out.backward(gradient)
    true_out.backward(gradient[0].double())
    pairs = {"states": (out[0], true_out), "by states": (states.grad, true_states.grad)}
    for (name, parameter), true in zip(mine.named_parameters(), exact.parameters(), strict=True):
        if "key.bias" not in name:  # its gradient is 0 but for rounding
            pairs[name] = (parameter.grad, true.grad)
    errors = {name: float((a.double() - b).norm() / b.norm()) for name, (a, b) in pairs.items()}
    assert max(errors.values()) < 2**-6, errors
    return errors


def _kernels(bench: Bench) -> dict[str, float]:
    """Return seconds of what the layer does between its products, in the shape of the part `encoder`."""
    from bali_ds.model import fused_kernels as kernels

    packs = _packs(bench)
    arguments = attention_arguments(packs, on_gpu=True)
    count = sum(len(pack.input_ids) for pack in packs)
    states, inner = (torch.randn(count, width, device="cuda", dtype=BF16) for width in (768, 3072))
    projected = torch.randn(count, 3, 12, 64, device="cuda", dtype=BF16)
    weight, seed = torch.ones(768, device="cuda", dtype=BF16), torch.tensor([7], device="cuda")
    attention = PackedAttention(*arguments.values(), scaling=0.125, dropout=0.1)
    values, *kept = attention.values(*projected.unbind(1), seed)
    into = torch.empty_like(projected)
    works = {
        "residual norm": lambda: kernels.residual_norm(states, states, weight, weight, seed, 1e-12, 0.1),
        "its gradients": lambda: kernels.residual_norm_gradients(states, states, weight, seed, 1e-12, 0.1),
        "gradient of GELU": lambda: kernels.gelu_gradients(inner, inner),
        "column sums": lambda: kernels.column_sums(projected.view(count, -1)),
        "attention": lambda: attention.values(*projected.unbind(1), seed),
        "its gradient": lambda: attention.write_gradients(values, projected.unbind(1), seed, (values, *kept), into),
    }
    return {name: bench.kernel_seconds(work) for name, work in works.items()}


def inference(bench: Bench) -> Figures:
    """The exported encoder of the `training` part gives on the device the vectors that it gives on the CPU."""
    export = bench.folder / "runs/whole/export"
    assert export.exists(), "the part `training` has not run or failed"
    texts = [f"chronic renal failure {number} with anemia" * (1 + number % 5) for number in range(64)]
    on_cpu, on_device = (load(export, device=device).encode(texts) for device in ("cpu", bench.device))
    error = float(abs(on_cpu - on_device).max())
    assert error < 5e-3, f"vectors are off by {error:.1e}"
    encoder = load(export, device=bench.device)
    return {"largest_difference": error, "texts_per_second": len(texts) / bench.seconds(lambda: encoder.encode(texts))}
