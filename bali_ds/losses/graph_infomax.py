"""Deep graph infomax over the nodes of a micro-batch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GraphInfomax(nn.Module):
    """Discriminator between nodes of the graph and nodes of a corrupted graph (Velickovic et al., ICLR 2019).

    With h the vectors of nodes, h' those of the same graph with shuffled features, s = sigmoid(mean of h) a summary of
    the graph and D(h) = sigmoid(h W s), the loss is the mean of -log D(h) plus the mean of -log(1 - D(h')) (equations 1
    and 4 of the paper), the Jensen-Shannon estimator of the mutual information between nodes and summary.

    Args:
        width: size d of the vectors.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, real: Tensor, corrupted: Tensor) -> tuple[Tensor, int]:
        """Return the loss summed over nodes, float32 scalar, and the number of nodes.

        Args:
            real: float [N, d], vectors of the graph's nodes; N may be 0.
            corrupted: float [N, d], vectors of the corrupted graph's nodes.
        """
        summary = torch.sigmoid(real.sum(dim=0) / max(len(real), 1))
        direction = self.weight @ summary
        losses = F.softplus(-(real @ direction).float()) + F.softplus((corrupted @ direction).float())
        return losses.sum(), len(real)
