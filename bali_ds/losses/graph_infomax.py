"""Deep graph infomax (Velickovic et al., ICLR 2019) over the nodes of a micro-batch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GraphInfomax(nn.Module):
    """Tells node vectors of the graph from those of one with shuffled features, by a summary of the graph.

    With s = sigmoid(mean of h) and D(h) = sigmoid(h W s), the loss is the mean of -log D(h) over the real nodes plus
    the mean of -log(1 - D(h')) over those of the corrupted graph (equations 1 and 4 there): the Jensen-Shannon form
    of the mutual information of nodes and summary.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, real: Tensor, corrupted: Tensor) -> tuple[Tensor, int]:
        """Return the loss summed over nodes, and their number.

        Args:
            real: float [N, d]; N may be 0.
            corrupted: float [N, d].
        """
        summary = torch.sigmoid(real.sum(dim=0) / max(len(real), 1))
        direction = self.weight @ summary
        losses = F.softplus(-(real @ direction).float()) + F.softplus((corrupted @ direction).float())
        return losses.sum(), len(real)
