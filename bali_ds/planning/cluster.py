"""Rates of a cluster that is not at hand: measured where a source is given, assumed elsewhere."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cluster:
    """Hosts of eight H100.

    Attributes:
        node: GPUs of a host.
        within: bytes per second that a GPU sends to another of its host (NVLink 4: 450e9, 80 % of it assumed).
        wire: bytes per second that a GPU sends to another host (assumed: one port of 400 Gb/s at 80 %).
        message: seconds of a message between hosts (assumed).
        mfu: fraction of the dense peak that a training step of the text encoder reaches (measured: BERT-base alone on
            one H100, docs/gpu.md; assumed for other encoders and cards).
        loss_rate: FLOP/s of the contrastive loss (measured: `clip` of 65,536 pairs of width 768 takes 51 ms,
            docs/gpu.md).
        loader: passages per second of one loader worker (measured: bench/stream.py on one core).
        read: bytes per second that the file system reads for each GPU (assumed: 2 GB/s a host).
        disk_write: bytes per second that a rank writes to the page cache of its host at a checkpoint (assumed).
        storage: bytes per second that the file system writes for all ranks together (assumed).
        restart: seconds from a failure until ranks train again: requeue, start, load (assumed).
    """

    node: int = 8
    within: float = 360e9
    wire: float = 40e9
    message: float = 20e-6
    mfu: float = 0.39
    loss_rate: float = 8 * 65_536**2 * 768 / 0.051
    loader: float = 30e3
    read: float = 0.25e9
    disk_write: float = 2e9
    storage: float = 50e9
    restart: float = 300.0

    def link(self, gpus: int) -> float:
        """Return the bytes per second that a GPU sends in a collective over so many GPUs."""
        return self.within if gpus <= self.node else self.wire
