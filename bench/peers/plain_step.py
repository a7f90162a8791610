"""The training step as people write it: padded to the longest, every name encoded anew, the loss of a library."""

import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import NTXentLoss
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bali_ds.data.batch import Batch, PackedSequences
from bali_ds.model.aligner import Aligner


class PlainStep:
    """Loss of a batch by the modules of an aligner, called the plain way; NT-Xent and masked language modeling.

    Args:
        aligner: with a Hugging Face encoder under torch's fused attention.
        batch: what it is called with; the plain form is made once and not timed.
        special: ids of [CLS], [SEP], [PAD].
    """

    def __init__(self, aligner: Aligner, batch: Batch, pad_id: int) -> None:
        self.aligner, self.batch = aligner, batch
        passages, names = _rows(batch.passages), _rows(batch.names)
        self.passages, self.passage_mask = _padded(passages, pad_id)
        # one row for every node, as no one looks for equal names
        self.names, self.name_mask = _padded([names[row] for row in batch.node_names.tolist()], pad_id)
        rows = torch.repeat_interleave(torch.arange(len(passages)), batch.passages.lengths)
        self.cells = rows * self.passages.shape[1] + batch.passages.positions
        labels = torch.full((self.passages.numel(),), -100)
        labels[self.cells[batch.labeled_tokens]] = batch.labels
        self.labels = labels
        self.mentions = self.cells[batch.mention_tokens]

    @property
    def positions(self) -> int:
        """Positions that the encoder reads, padding included."""
        return self.passages.numel() + self.names.numel()

    def loss(self) -> Tensor:
        """Return the loss of the step."""
        batch, text = self.batch, self.aligner.text
        hidden = text.encoder(input_ids=self.passages, attention_mask=self.passage_mask).last_hidden_state.flatten(0, 1)
        masked = F.cross_entropy(text.head(hidden).float(), self.labels, ignore_index=-100)
        views = [
            hidden[self.mentions[batch.mention_views == view]].float().mean(dim=0)
            for view in range(len(batch.text_views))
        ]
        states = text.encoder(input_ids=self.names, attention_mask=self.name_mask).last_hidden_state
        inner = self.name_mask.clone()
        inner[:, 0] = 0
        inner[torch.arange(len(inner)), self.name_mask.sum(dim=1) - 1] = 0
        features = (states * inner[:, :, None]).sum(dim=1) / inner.sum(dim=1, keepdim=True).clamp(min=1)
        nodes = self.aligner.graph(features.to(states.dtype), batch.edge_index, batch.edge_relations)
        together = torch.cat([torch.stack(views), nodes[batch.targets].float()])
        concepts = torch.cat([batch.concept_ids[batch.text_views], batch.concept_ids])
        aligned = NTXentLoss(temperature=self.aligner.objective.contrastive.temperature)(together, concepts)
        return masked + aligned


def _rows(packed: PackedSequences) -> list[Tensor]:
    return list(packed.input_ids.split(packed.lengths.tolist()))


def _padded(rows: list[Tensor], pad_id: int) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(row) for row in rows])
    padded = pad_sequence(rows, batch_first=True, padding_value=pad_id)
    return padded, (torch.arange(padded.shape[1]) < lengths[:, None]).long()
