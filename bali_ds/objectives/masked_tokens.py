"""Masked language modeling of passages and of linearized neighborhoods."""

from typing import TYPE_CHECKING

from bali_ds.data.batch import Batch
from bali_ds.objectives.objective import EncodedBatch, LanguageModel, Objective, Sum, Sums

if TYPE_CHECKING:
    from torch import Tensor


class MaskedLanguageModel(Objective):
    """Cross-entropy of the masked tokens of passages."""

    name = "masked_language_model"
    in_evaluation = True

    def passage_sums(self, text: LanguageModel, hidden: "Tensor", batch: Batch) -> Sums:
        """Return the sum over the labeled tokens of the passages."""
        return {self.name: _prediction(text, hidden[batch.labeled_tokens], batch.labels)}


class GraphLanguageModel(Objective):
    """Cross-entropy of the masked tokens of linearized neighborhoods."""

    name = "graph_language_model"
    in_evaluation = True

    def graph_sums(self, encoded: EncodedBatch) -> Sums:
        """Return the sum over the labeled tokens of the neighborhoods."""
        batch = encoded.batch
        return {
            self.name: _prediction(encoded.text, encoded.neighborhoods[batch.graph_labeled_tokens], batch.graph_labels)
        }


def _prediction(text: LanguageModel, hidden: "Tensor", labels: "Tensor") -> Sum:
    from bali_ds.losses.masked_language_model import summed_cross_entropy

    return summed_cross_entropy(text.head(hidden), labels), int(labels.shape[0])
