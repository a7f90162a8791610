"""Hardware rates that a projection uses: measured where a source is given, assumed elsewhere."""

from dataclasses import dataclass

from bali_ds.losses.contrastive.communication_cost import H100, HardwareRates


@dataclass(frozen=True)
class Cluster:
    """Hosts of eight H100.

    Attributes:
        rates: of the loss and of what connects the GPUs, measured or cited.
        node: GPUs of a host.
        mfu: fraction of the dense peak that a training step of the text encoder reaches (measured: BERT-base alone on
            one H100, docs/gpu.md; assumed for other encoders and cards).
        loader: passages per second of one loader worker (measured: bench/stream.py on one core).
        read: bytes per second that the file system reads for each GPU (assumed: 2 GB/s a host).
        disk_write: bytes per second that a rank writes to the page cache of its host at a checkpoint (assumed).
        storage: bytes per second that the file system writes for all ranks together (assumed).
        restart: seconds from a failure until ranks train again: requeue, start, load (assumed).
    """

    rates: HardwareRates = H100
    node: int = 8
    mfu: float = 0.39
    loader: float = 30e3
    read: float = 0.25e9
    disk_write: float = 2e9
    storage: float = 50e9
    restart: float = 300.0

    def link(self, gpus: int) -> float:
        """Return the bytes per second that a GPU sends in a collective among this many GPUs."""
        return self.rates.within_node if gpus <= self.node else self.rates.between_nodes
