"""Decoder of the dual objective: facts from text and text from the graph, with estimates of mutual information."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bali_ds.config.objectives import DualConfig
from bali_ds.data.batch import PaddedSequences
from bali_ds.errors import InputError
from bali_ds.losses.mutual_information import duality_gap
from bali_ds.objectives.dual_batch import PassagesWithFacts
from bali_ds.objectives.objective import LanguageModel, Sums


class Decoder(nn.Module):
    """Transformer decoder of two languages, passages and facts, with one set of weights, that attends to given vectors.

    One learned vector for each language precedes the given ones, so that there is always something to attend to;
    without given vectors the decoder is a language model.

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
        """Return states that predict each next token, float [B, L, d].

        Args:
            tokens: float [B, L, d], embeddings of the tokens so far.
            given: float [B, M, d].
            valid: bool [B, M], which of them may be attended to.
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

# A batch's tokens are cut into this many parts, and only the logits of one part are in memory; the number is constant
# so that every rank calls the head equally often.
LOGIT_PARTS = 8


def loss_weights(settings: DualConfig) -> dict[str, float]:
    """Return the weight of each of the decoder's sums in the total loss; information is only logged."""
    losses = dict.fromkeys(("text_to_graph", "graph_to_text", "graph_alone", "text_alone"), settings.weight)
    information = {"information_text_to_graph": 0.0, "information_graph_to_text": 0.0}
    return losses | {"duality": settings.weight * settings.duality} | information


class DualDecoder(nn.Module):
    """Cross-entropies of a passage's facts g and of its tokens t, each given the other modality and by itself.

    The facts are written from the states of the masked passage, the passage from the nodes of its concepts' ego graphs,
    with teacher forcing. The tokens are embedded by the text encoder and predicted by its masked-language-model head.

    Two estimates of the mutual information are logged, in nats a pair: E log p(g | t) - log p(g) and
    E log p(t | g) - log p(t). With an exact log p(g), the first would be the lower bound H(g) + E log p(g | t) of
    Barber and Agakov (NIPS 2003, equation 3), and likewise the second; as the decoder's own marginal is an upper bound
    of the entropy, they are estimates.
    """

    def __init__(self, settings: DualConfig, text: LanguageModel, longest: int) -> None:
        super().__init__()
        width = text.width
        if text.encoder.get_input_embeddings().embedding_dim != width:
            raise InputError(
                "objective.dual: needs an encoder whose embeddings are as wide as its states; take another encoder"
            )
        if width % settings.heads:
            raise InputError(f"objective.dual.heads: width {width} does not divide by {settings.heads} heads")
        self.decoder = Decoder(
            width, layers=settings.layers, heads=settings.heads, dropout=settings.dropout, longest=longest
        )

    def forward(self, text: LanguageModel, hidden: torch.Tensor, nodes: torch.Tensor, pairs: PassagesWithFacts) -> Sums:
        """Return the sums of one micro-batch by name: per token, per pair for duality and information.

        Args:
            text: embeds and predicts tokens.
            hidden: float [P, d], states of the masked passages.
            nodes: float [N, d], vectors of the graph's nodes.
            pairs: B passages and their facts.
        """
        passages, facts = pairs.originals, pairs.facts
        graph = self._log_likelihoods(text, facts, *self.seen_text(hidden, pairs), FACTS)
        words = self._log_likelihoods(text, passages, *self.seen_graph(nodes, pairs), PASSAGES)
        sizes = {"graph": int((facts.lengths - 1).sum()), "text": int((passages.lengths - 1).sum())}
        count = int(facts.lengths.shape[0])
        tokens = (facts.lengths + passages.lengths).float()
        gap = duality_gap(words[1] / tokens, graph[1] / tokens, graph[0] / tokens, words[0] / tokens)
        return {
            "text_to_graph": (-graph[0].sum(), sizes["graph"]),
            "graph_to_text": (-words[0].sum(), sizes["text"]),
            "graph_alone": (-graph[1].sum(), sizes["graph"]),
            "text_alone": (-words[1].sum(), sizes["text"]),
            "duality": (gap.sum(), count),
            "information_text_to_graph": ((graph[0] - graph[1]).detach().sum(), count),
            "information_graph_to_text": ((words[0] - words[1]).detach().sum(), count),
        }

    def seen_text(self, hidden: torch.Tensor, pairs: PassagesWithFacts) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states of each passage, float [B, L, d], and which of them are tokens, bool [B, L]."""
        return hidden[pairs.original_positions], pairs.originals.mask

    def seen_graph(self, nodes: torch.Tensor, pairs: PassagesWithFacts) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the nodes of each passage, float [B, M, d], and which of them exist, bool [B, M]."""
        padded = torch.cat([nodes.new_zeros(1, nodes.shape[1]), nodes])
        return padded[pairs.passage_nodes + 1], pairs.passage_nodes >= 0

    def _log_likelihoods(
        self, text: LanguageModel, written: PaddedSequences, given: torch.Tensor, valid: torch.Tensor, language: int
    ) -> torch.Tensor:
        """Return log-likelihoods of sequences, given the other modality and given nothing, float32 [2, B]."""
        count = len(written.lengths)
        states = self._states(
            text, written.input_ids[:, :-1].repeat(2, 1), given.repeat(2, 1, 1),
            torch.cat([valid, torch.zeros_like(valid)]), language,
        )  # fmt: skip
        targets, mask = written.input_ids[:, 1:].repeat(2, 1), written.mask[:, 1:].repeat(2, 1)
        losses = _cross_entropies(text.head, states.flatten(0, 1), targets.flatten()).view_as(targets)
        return -(losses * mask).sum(dim=1).view(2, count)

    def _states(
        self, text: LanguageModel, ids: torch.Tensor, given: torch.Tensor, valid: torch.Tensor, language: int
    ) -> torch.Tensor:
        return self.decoder(text.encoder.get_input_embeddings()(ids), given, valid, language)

    @torch.no_grad()
    def generate(
        self, text: LanguageModel, given: torch.Tensor, valid: torch.Tensor, language: int, start: int, length: int
    ) -> torch.Tensor:
        """Return greedily decoded sequences, int64 [B, length], `start` first.

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
    """Return the loss of each token, float32 [K]; logits are recomputed in the backward pass, a part at a time."""

    def losses(states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(head(states).float(), targets, reduction="none")

    parts = zip(states.tensor_split(LOGIT_PARTS), targets.tensor_split(LOGIT_PARTS), strict=True)
    return torch.cat([checkpoint(losses, *part, use_reentrant=False) for part in parts])
