"""Memory of one rank and traffic of one step under each ZeRO stage.

The terms follow DeepSpeed 0.19.8 (stages of Rajbhandari et al., "ZeRO", SC 2020, section 5); `bench/plan.py` compares
them with measured peaks. P parameters, W ranks, b bytes of a weight in the run's precision.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from bali_ds.planning.activations import PassMemory

MASTER_BYTES = 4
ADAM_BYTES = 8
STAGE_0_BUCKET = 500_000_000


@dataclass(frozen=True)
class Run:
    """What memory and traffic depend on.

    Attributes:
        parameters: P.
        largest: elements of the largest parameter.
        weight_bytes: b, 4 or 2.
        ranks: W.
        activations: of one micro-batch.
        on_gpu: fused optimizer and buffers that exist as soon as they are reserved.
        settings: the DeepSpeed configuration.
        names: bytes of the table of cached name vectors.
    """

    parameters: int
    largest: int
    weight_bytes: int
    ranks: int
    activations: PassMemory
    on_gpu: bool
    settings: Mapping[str, Any]
    names: int = 0

    @property
    def shard(self) -> int:
        """Parameters of one rank's part, rounded up."""
        return -(-self.parameters // self.ranks)


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank.

    Attributes:
        stage: ZeRO stage.
        weights: as they lie between steps.
        gathered: other ranks' weights during a pass (stage 3).
        master: fp32 copy that the optimizer updates.
        optimizer: AdamW's two moments.
        gradients: as they lie at the end of the backward pass.
        buckets: buffers of the gradient reduction.
        activations: of one micro-batch at the peak of its passes.
        peak: the largest sum at one time.
        offloaded: of all these, in the host's memory instead.
        names: cached name vectors, which no stage shares out.
    """

    stage: int
    weights: int
    gathered: int
    master: int
    optimizer: int
    gradients: int
    buckets: int
    activations: int
    peak: int
    offloaded: int
    names: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return the numbers by name."""
        return asdict(self)


def rank_memory(run: Run, stage: int) -> Memory:
    """Return the memory of a rank under a ZeRO stage; bucket sizes and offloading are those of the configuration."""
    memory = (_unsharded(run), _sharded(run, 1), _sharded(run, 2), _fully_sharded(run))[stage]
    return replace(memory, names=run.names, peak=memory.peak + run.names)


def _unsharded(run: Run) -> Memory:
    size, b = run.parameters, run.weight_bytes
    mixed = b < MASTER_BYTES
    weights, master, optimizer = b * size, MASTER_BYTES * size * mixed, ADAM_BYTES * size
    flattened = b * min(size, STAGE_0_BUCKET)
    during_step = b * size + MASTER_BYTES * size * mixed + _adam_temporaries(run, run.largest)
    between = weights + master + optimizer
    peak = between + max(run.activations.kept, b * size + flattened, during_step)
    return Memory(0, weights, 0, master, optimizer, b * size, flattened, run.activations.kept, peak, 0)


def _sharded(run: Run, stage: int) -> Memory:
    size, b, shard = run.parameters, run.weight_bytes, run.shard
    zero = _zero(run)
    weights, master, optimizer = b * size, MASTER_BYTES * shard, ADAM_BYTES * shard
    bucket = b * int(zero.get("reduce_bucket_size", 5e8))
    # what a CPU never writes to takes no memory
    reserved = bucket * (2 if zero.get("overlap_comm") else 1) if run.on_gpu else 0
    used = min(bucket, b * size)
    end_of_backward = max(b * size, reserved or used) + max(used, b * shard)
    offloads = _offloads(zero, "offload_optimizer")
    offloaded = (master + optimizer + MASTER_BYTES * shard) if offloads else 0
    during_step = 0 if offloads else _sharded_step(run)
    between = weights + (0 if offloads else master + optimizer)
    peak = between + max(run.activations.kept + reserved, end_of_backward, during_step)
    gradients = b * size if stage == 1 else b * shard
    return Memory(
        stage, weights, 0, master, optimizer, gradients, reserved or used, run.activations.kept, peak, offloaded
    )


def _fully_sharded(run: Run) -> Memory:
    size, b, shard = run.parameters, run.weight_bytes, run.shard
    zero = _zero(run)
    weights, master, optimizer, gradients = b * shard, MASTER_BYTES * shard, ADAM_BYTES * shard, b * shard
    gathered = b * min(size, int(zero.get("stage3_max_live_parameters", 1e9))) if run.ranks > 1 else 0
    bucket = b * int(zero.get("reduce_bucket_size", 5e8))
    used = min(bucket, b * size)
    reserved = bucket if run.on_gpu else used
    states_offloaded, weights_offloaded = (_offloads(zero, key) for key in ("offload_optimizer", "offload_param"))
    offloaded = weights * weights_offloaded + (master + optimizer + gradients) * states_offloaded
    between = weights + master + optimizer + gradients + reserved - offloaded
    during_step = 0 if states_offloaded else _sharded_step(run)
    peak = between + max(run.activations.flowing + gathered, gathered + 2 * used, during_step)
    return Memory(
        3, weights, gathered, master, optimizer, gradients, reserved, run.activations.flowing, peak, offloaded
    )


def _sharded_step(run: Run) -> int:
    """Fp32 gradients of the shard, beside what AdamW needs for a moment."""
    averaged = run.weight_bytes * run.shard
    return MASTER_BYTES * run.shard + max(averaged, _adam_temporaries(run, run.shard))


def _adam_temporaries(run: Run, elements: int) -> int:
    # torch's plain AdamW holds the root of the second moment and its quotient; the fused one holds neither
    return 0 if run.on_gpu else 2 * MASTER_BYTES * elements


def _zero(run: Run) -> Mapping[str, Any]:
    return run.settings.get("zero_optimization", {})


def _offloads(zero: Mapping[str, Any], key: str) -> bool:
    return zero.get(key, {}).get("device", "none") != "none"


def bytes_sent(run: Run, stage: int) -> int:
    """Return the bytes that a rank sends in one step for weights and gradients.

    DeepSpeed reduces gradients to all ranks in stages 0, 1 and 2: a ring sends each part twice. Stages 1 and 2 then
    gather the updated weights; stage 3 scatters gradients and gathers weights, for the backward pass once more unless
    they may all stay alive.
    """
    zero = _zero(run)
    names = {"fp32": 4, "fp16": 2, "bf16": 2}
    gradient_bytes = names.get(run.settings.get("communication_data_type", ""), run.weight_bytes)
    weights, gradients = run.weight_bytes * run.parameters, gradient_bytes * run.parameters
    stays = run.parameters <= int(zero.get("stage3_max_live_parameters", 1e9))
    volume = {
        0: 2 * gradients,
        1: 2 * gradients + weights,
        2: 2 * gradients + weights,
        3: gradients + weights * (1 if stays else 2),
    }[stage]
    return volume * (run.ranks - 1) // run.ranks
