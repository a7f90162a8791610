"""Text to facts and graph to text: a decoder in both directions, and what it tells of their mutual information."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bali_ds.config import objectives
from bali_ds.data.batch import Batch, TokenBlock
from bali_ds.errors import InputError
from bali_ds.losses.mutual_information import duality_gap
from bali_ds.model.text_encoder import TextEncoder


class Decoder(nn.Module):
    """Writes one of two languages, passages or facts, from what it is given to look at; one set of weights for both.

    Before what is given stands one learned vector for each language, so that there is always something to look at; with
    nothing else the decoder is a language model.

    Args:
        width: size d of states.
        layers: number of layers.
        heads: attention heads; `width` divides by them.
        dropout: of every branch.
        longest: most tokens of a sequence.
    """

    def __init__(self, width: int, *, layers: int, heads: int, dropout: float, longest: int) -> None:
        super().__init__()
        self.places = nn.Embedding(longest, width)
        self.languages = nn.Embedding(2, width)
        self.givens = nn.Embedding(2, width)
        self.layers = nn.ModuleList(_Layer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor, given: torch.Tensor, valid: torch.Tensor, language: int) -> torch.Tensor:
        """Return states that tell each next token, float [B, L, d].

        Args:
            tokens: float [B, L, d], embeddings of the tokens so far.
            given: float [B, M, d].
            valid: bool [B, M], which of them may be looked at.
            language: 0 for facts, 1 for passages.
        """
        number = torch.full(tokens.shape[:1], language, device=tokens.device)
        places = torch.arange(tokens.shape[1], device=tokens.device)
        states = tokens + self.places(places) + self.languages(number)[:, None]
        given = torch.cat([self.givens(number)[:, None].to(given.dtype), given], dim=1)
        mask = torch.cat([valid.new_ones(len(valid), 1), valid], dim=1)[:, None, None, :]
        for layer in self.layers:
            states = layer(states, given.to(states.dtype), mask)
        return self.norm(states)


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.own = _Attention(width, heads)
        self.cross = _Attention(width, heads)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.dropout = dropout

    def forward(self, states: torch.Tensor, given: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        own = self.norms[0](states)
        states = states + self._dropped(self.own(own, own, None))
        states = states + self._dropped(self.cross(self.norms[1](states), given, mask))
        return states + self._dropped(self.narrow(F.gelu(self.widen(self.norms[2](states)))))

    def _dropped(self, branch: torch.Tensor) -> torch.Tensor:
        return F.dropout(branch, self.dropout, self.training)


class _Attention(nn.Module):
    """Multi-head attention; causal where there is no mask."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, states: torch.Tensor, given: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(states), *self.key_value(given).chunk(2, dim=2))
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)
        return self.out(mixed.transpose(1, 2).flatten(2))


FACTS, PASSAGES = 0, 1

# Parts of a batch's tokens whose logits are in memory one after the other: as many on every rank.
PARTS = 8

Sum = tuple[torch.Tensor, int]


class DualDecoder(nn.Module):
    """Cross-entropies of a passage's facts g and of its tokens t, each given the other modality and by itself.

    The facts are written from the states of the masked passage, the passage from the nodes of its concepts' stars,
    with teacher forcing. The tokens are embedded by the text encoder and predicted by its masked-language-model head.

    Of the mutual information, E log p(g | t) - log p(g) and E log p(t | g) - log p(t) are logged, in nats a pair.
    Were log p(g) exact, the first would be the lower bound H(g) + E log p(g | t) of Barber and Agakov (NIPS 2003,
    equation 3), and so the second; as the decoder's own marginal is an upper bound of the entropy, they are estimates.
    """

    def __init__(self, settings: objectives.DualConfig, text: TextEncoder, longest: int) -> None:
        super().__init__()
        width = text.width
        if text.encoder.get_input_embeddings().embedding_dim != width:
            raise InputError("objective.dual: the encoder's embeddings are narrower than its states; take another one")
        if width % settings.heads:
            raise InputError(f"objective.dual.heads: width {width} does not divide by {settings.heads} heads")
        self.weight, self.duality = settings.weight, settings.duality
        self.decoder = Decoder(
            width, layers=settings.layers, heads=settings.heads, dropout=settings.dropout, longest=longest
        )

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each sum in the total loss; information is only logged."""
        losses = dict.fromkeys(("text_to_graph", "graph_to_text", "graph_alone", "text_alone"), self.weight)
        information = {"information_text_to_graph": 0.0, "information_graph_to_text": 0.0}
        return losses | {"duality": self.weight * self.duality} | information

    def forward(self, text: TextEncoder, hidden: torch.Tensor, nodes: torch.Tensor, batch: Batch) -> dict[str, Sum]:
        """Return the sums of one micro-batch by name: per token, per pair for duality and information.

        Args:
            text: embeds and predicts tokens.
            hidden: float [P, d], states of the masked passages.
            nodes: float [N, d], vectors of the graph's nodes.
            batch: with originals and triples, B of each.
        """
        (passages,), (facts,) = batch.originals, batch.triples
        graph = self._log_likelihoods(text, facts, *self.seen_text(hidden, batch), FACTS)
        words = self._log_likelihoods(text, passages, *self.seen_graph(nodes, batch), PASSAGES)
        sizes = {"graph": int((facts.lengths - 1).sum()), "text": int((passages.lengths - 1).sum())}
        pairs = int(facts.lengths.shape[0])
        tokens = (facts.lengths + passages.lengths).float()
        gap = duality_gap(words[1] / tokens, graph[1] / tokens, graph[0] / tokens, words[0] / tokens)
        return {
            "text_to_graph": (-graph[0].sum(), sizes["graph"]),
            "graph_to_text": (-words[0].sum(), sizes["text"]),
            "graph_alone": (-graph[1].sum(), sizes["graph"]),
            "text_alone": (-words[1].sum(), sizes["text"]),
            "duality": (gap.sum(), pairs),
            "information_text_to_graph": ((graph[0] - graph[1]).detach().sum(), pairs),
            "information_graph_to_text": ((words[0] - words[1]).detach().sum(), pairs),
        }

    def seen_text(self, hidden: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states of each passage, float [B, L, d], and which of them are tokens, bool [B, L]."""
        return hidden[batch.original_positions], batch.originals[0].attention_mask.bool()

    def seen_graph(self, nodes: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the nodes of each passage, float [B, M, d], and which of them exist, bool [B, M]."""
        padded = torch.cat([nodes.new_zeros(1, nodes.shape[1]), nodes])
        return padded[batch.passage_nodes + 1], batch.passage_nodes >= 0

    def _log_likelihoods(
        self, text: TextEncoder, block: TokenBlock, given: torch.Tensor, valid: torch.Tensor, language: int
    ) -> torch.Tensor:
        """Log-likelihoods of sequences, given what can be seen and given nothing, float32 [2, B]."""
        count = len(block.lengths)
        states = self._states(
            text, block.input_ids[:, :-1].repeat(2, 1), given.repeat(2, 1, 1),
            torch.cat([valid, torch.zeros_like(valid)]), language,
        )  # fmt: skip
        targets, mask = block.input_ids[:, 1:].repeat(2, 1), block.attention_mask[:, 1:].repeat(2, 1)
        losses = _cross_entropies(text.head, states.flatten(0, 1), targets.flatten()).view_as(targets)
        return -(losses * mask).sum(dim=1).view(2, count)

    def _states(
        self, text: TextEncoder, ids: torch.Tensor, given: torch.Tensor, valid: torch.Tensor, language: int
    ) -> torch.Tensor:
        return self.decoder(text.encoder.get_input_embeddings()(ids), given, valid, language)

    @torch.no_grad()
    def generate(
        self, text: TextEncoder, given: torch.Tensor, valid: torch.Tensor, language: int, start: int, length: int
    ) -> torch.Tensor:
        """Return the most likely next token again and again, int64 [B, length], `start` first.

        Args:
            text: embeds and predicts tokens.
            given: float [B, M, d], see `seen_text` and `seen_graph`.
            valid: bool [B, M].
            language: FACTS or PASSAGES.
            start: the first token.
            length: tokens in all.
        """
        ids = torch.full((len(given), 1), start, device=given.device)
        while ids.shape[1] < length:
            states = self._states(text, ids, given, valid, language)[:, -1]
            ids = torch.cat([ids, text.head(states).argmax(dim=-1, keepdim=True)], dim=1)
        return ids


def _cross_entropies(head: nn.Module, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the loss of each token, float32 [K]; logits are made again in the backward pass, a part at a time."""

    def losses(states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(head(states).float(), targets, reduction="none")

    parts = zip(states.tensor_split(PARTS), targets.tensor_split(PARTS), strict=True)
    return torch.cat([checkpoint(losses, *part, use_reentrant=False) for part in parts])
