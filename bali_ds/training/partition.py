"""DeepSpeed's partition of weights while a model is built (ZeRO-3)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from bali_ds.config import Recipe
from bali_ds.model.decoder import decoder_weights, is_decoder
from bali_ds.model.text_encoder import read_configuration


class ZeroPartition:
    """Partitions every parameter over all ranks as soon as its module is complete."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Partition under the completed DeepSpeed configuration of a run, of stage 3."""
        self._settings = settings

    def building(self) -> AbstractContextManager[Any]:
        """Return a context in which new parameters are partitioned."""
        # Init takes the dtype from the settings. It ignores an argument `dtype` where the device has no fp16, as most
        # CPUs, and makes weights bf16 there.
        context: AbstractContextManager[Any] = deepspeed.zero.Init(config_dict_or_path=self._settings)
        return context

    @contextmanager
    def whole(self, parameter: torch.nn.Parameter) -> Iterator[bool]:
        """Gather a parameter inside the block, whose values on rank 0 are kept; a collective call."""
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
            yield dist.get_rank() == 0


def partition_of(recipe: Recipe, settings: dict[str, Any]) -> ZeroPartition | None:
    """Return how the weights of a decoder are partitioned while they are loaded at ZeRO stage 3, else None.

    Encoders that are not decoders, and decoders with new weights, are built on every rank before DeepSpeed partitions
    them.

    Raises:
        InputError: weights are missing or of another shape.
    """
    encoder = recipe.text_encoder
    if settings.get("zero_optimization", {}).get("stage", 0) < 3 or encoder.weights == "random":
        return None
    config = read_configuration(encoder.path, layer=encoder.layer)
    if not is_decoder(config):
        return None
    decoder_weights(encoder.path, config)
    return ZeroPartition(settings)
