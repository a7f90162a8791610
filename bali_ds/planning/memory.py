"""Memory of one rank and traffic of one step at each ZeRO stage.

The formulas follow DeepSpeed 0.19.8 (stages of Rajbhandari et al., "ZeRO", SC 2020, section 5); `bench/plan.py`
compares them with measured peaks. P is the number of parameters, W the number of ranks, b the bytes of a weight.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from bali_ds.model.build_model import DTYPES
from bali_ds.planning.activations import PassMemory

MASTER_BYTES = 4
ADAM_BYTES = 8
STAGE_0_BUCKET = 500_000_000


@dataclass(frozen=True)
class MemoryInputs:
    """Properties of a run that determine memory and traffic.

    Attributes:
        parameters: number of parameters P.
        trained: those that are trained, of which there are gradients and states of the optimizer.
        largest: elements of the largest trained parameter.
        weight_bytes: bytes b of a weight in the run's precision, 4 or 2.
        ranks: number of ranks W.
        activations: peak memory of the passes of one micro-batch.
        on_gpu: whether ranks use GPUs: the optimizer is fused, and reserved buffers take memory even if unused.
        settings: the DeepSpeed configuration.
        names: bytes of the table of cached name vectors.
    """

    parameters: int
    trained: int
    largest: int
    weight_bytes: int
    ranks: int
    activations: PassMemory
    on_gpu: bool
    settings: Mapping[str, Any]
    names: int = 0

    @property
    def shard(self) -> int:
        """Trained parameters of one rank's partition, rounded up."""
        return -(-self.trained // self.ranks)


@dataclass(frozen=True)
class RankMemory:
    """Memory of one rank in bytes.

    Attributes:
        stage: ZeRO stage.
        weights: weights held between steps.
        gathered: weights of other ranks held during a pass (stage 3).
        master: fp32 weights that the optimizer updates.
        optimizer: the two moments of AdamW.
        gradients: gradients held at the end of the backward pass.
        buckets: buffers of the gradient reduction.
        activations: activations of one micro-batch at the peak of its passes.
        peak: the most memory in use at one time.
        offloaded: the part of the above that is in host memory instead.
        names: cached name vectors, replicated on every rank at every stage.
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
        """Return the fields as a dictionary."""
        return asdict(self)


def rank_memory(inputs: MemoryInputs, stage: int) -> RankMemory:
    """Return the memory of a rank at a ZeRO stage, with the bucket sizes and offloading of the configuration."""
    memory = (_unsharded(inputs), _sharded(inputs, 1), _sharded(inputs, 2), _fully_sharded(inputs))[stage]
    return replace(memory, names=inputs.names, peak=memory.peak + inputs.names)


def _unsharded(inputs: MemoryInputs) -> RankMemory:
    size, b = inputs.trained, inputs.weight_bytes
    mixed = b < MASTER_BYTES
    weights, master, optimizer = b * inputs.parameters, MASTER_BYTES * size * mixed, ADAM_BYTES * size
    flattened = b * min(size, STAGE_0_BUCKET)
    during_step = b * size + MASTER_BYTES * size * mixed + _adam_temporaries(inputs, inputs.largest)
    between = weights + master + optimizer
    peak = between + max(inputs.activations.with_gradients, b * size + flattened, during_step)
    return RankMemory(0, weights, 0, master, optimizer, b * size, flattened, inputs.activations.with_gradients, peak, 0)


def _sharded(inputs: MemoryInputs, stage: int) -> RankMemory:
    size, b, shard = inputs.trained, inputs.weight_bytes, inputs.shard
    zero = _zero(inputs)
    weights, master, optimizer = b * inputs.parameters, MASTER_BYTES * shard, ADAM_BYTES * shard
    bucket = b * int(zero.get("reduce_bucket_size", 5e8))
    used = min(bucket, b * size)
    offloads = _offloads(zero, "offload_optimizer")
    if zero.get("contiguous_gradients", True) or offloads:  # DeepSpeed needs the buckets for offloading
        # on a CPU, reserved pages that are never written take no memory
        reserved = bucket * (2 if zero.get("overlap_comm") else 1) if inputs.on_gpu else 0
        during_backward, end_of_backward = reserved, max(b * size, reserved or used) + max(used, b * shard)
    else:
        # gradients stay where they are; as many as a bucket holds are copied, and once more in another dtype to send
        communicated = _communication_bytes(inputs)
        reserved, sent = 0, used + (used // b * communicated if communicated != b else 0)
        # stage 1 reduces after the backward pass, stage 2 in it
        during_backward, end_of_backward = sent if stage == 2 else 0, b * size + sent
    offloaded = (master + optimizer + MASTER_BYTES * shard) if offloads else 0
    during_step = 0 if offloads else _sharded_step(inputs)
    between = weights + (0 if offloads else master + optimizer)
    peak = between + max(inputs.activations.with_gradients + during_backward, end_of_backward, during_step)
    gradients = b * size if stage == 1 else b * shard
    return RankMemory(
        stage,
        weights,
        0,
        master,
        optimizer,
        gradients,
        reserved or used,
        inputs.activations.with_gradients,
        peak,
        offloaded,
    )


def _fully_sharded(inputs: MemoryInputs) -> RankMemory:
    size, b, shard = inputs.parameters, inputs.weight_bytes, inputs.shard
    zero = _zero(inputs)
    master, optimizer, gradients = MASTER_BYTES * shard, ADAM_BYTES * shard, b * shard
    weights = b * -(-size // inputs.ranks)
    gathered = b * min(size, int(zero.get("stage3_max_live_parameters", 1e9))) if inputs.ranks > 1 else 0
    bucket = b * int(zero.get("reduce_bucket_size", 5e8))
    used = min(bucket, b * inputs.trained)
    reserved = bucket if inputs.on_gpu else used
    states_offloaded, weights_offloaded = (_offloads(zero, key) for key in ("offload_optimizer", "offload_param"))
    offloaded = weights * weights_offloaded + (master + optimizer + gradients) * states_offloaded
    if _holders(inputs) > 1:
        weights += b * -(-size // _holders(inputs))  # the second copy stays on the device
    between = weights + master + optimizer + gradients + reserved - offloaded
    during_step = 0 if states_offloaded else _sharded_step(inputs)
    peak = between + max(inputs.activations.without_gradients + gathered, gathered + 2 * used, during_step)
    return RankMemory(
        3,
        weights,
        gathered,
        master,
        optimizer,
        gradients,
        reserved,
        inputs.activations.without_gradients,
        peak,
        offloaded,
    )


def _sharded_step(inputs: MemoryInputs) -> int:
    """Fp32 gradients of the partition and the temporaries of AdamW."""
    averaged = inputs.weight_bytes * inputs.shard
    return MASTER_BYTES * inputs.shard + max(averaged, _adam_temporaries(inputs, inputs.shard))


def _adam_temporaries(inputs: MemoryInputs, elements: int) -> int:
    # torch's AdamW without fusion allocates the root of the second moment and its quotient
    return 0 if inputs.on_gpu else 2 * MASTER_BYTES * elements


def _zero(inputs: MemoryInputs) -> Mapping[str, Any]:
    return inputs.settings.get("zero_optimization", {})


def _holders(inputs: MemoryInputs) -> int:
    """Return how many ranks hold a second copy of all weights together; 1 without one."""
    return min(inputs.ranks, int(_zero(inputs).get("zero_hpz_partition_size", 1)))


def _offloads(zero: Mapping[str, Any], key: str) -> bool:
    return zero.get(key, {}).get("device", "none") != "none"


def _communication_bytes(inputs: MemoryInputs) -> int:
    """Return the bytes of a gradient that is sent."""
    dtype = DTYPES.get(inputs.settings.get("communication_data_type", ""))
    return dtype.itemsize if dtype else inputs.weight_bytes


def bytes_sent(inputs: MemoryInputs, stage: int, reads: int = 2) -> int:
    """Return the bytes of weights and gradients that a rank sends in one step."""
    return sum(traffic(inputs, stage, reads))


class Traffic(NamedTuple):
    """Bytes that a rank sends in one step.

    Attributes:
        gradients: to all ranks.
        weights: to all ranks.
        held_weights: to the ranks that hold all weights together (`zero_hpz_partition_size`).
    """

    gradients: int
    weights: int
    held_weights: int


def traffic(inputs: MemoryInputs, stage: int, reads: int = 2) -> Traffic:
    """Return what a rank sends in one step.

    DeepSpeed all-reduces gradients at stages 0, 1 and 2; a ring sends each part twice. Stages 1 and 2 then all-gather
    the updated weights. Stage 3 reduce-scatters gradients and all-gathers weights whenever they are read, or once if
    `stage3_max_live_parameters` lets all of them stay. With `zero_hpz_partition_size` the first gather of a step is
    among all ranks and leaves a second copy, which the later ones read.

    Args:
        inputs: of the run.
        stage: ZeRO stage.
        reads: how often a step goes through the weights: twice with one forward and one backward pass.
    """
    zero = _zero(inputs)
    stays = inputs.parameters <= int(zero.get("stage3_max_live_parameters", 1e9))
    gradients = _communication_bytes(inputs) * inputs.trained * (2 if stage < 3 else 1)
    updated, every = inputs.weight_bytes * inputs.trained, inputs.weight_bytes * inputs.parameters
    gathers, holders = 1 if stays else reads, _holders(inputs)
    later = gathers - 1 if holders > 1 else 0
    weights = {0: 0, 1: updated, 2: updated, 3: every * (gathers - later)}[stage]
    held = every * later if stage == 3 else 0
    return Traffic(
        gradients * (inputs.ranks - 1) // inputs.ranks,
        weights * (inputs.ranks - 1) // inputs.ranks,
        held * (holders - 1) // holders,
    )
