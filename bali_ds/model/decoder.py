"""A small transformer decoder over the states of either modality (Vaswani et al., NIPS 2017)."""

import torch
from torch import nn
from torch.nn import functional as F


class Decoder(nn.Module):
    """Writes one of two languages, passages or facts, from what it is given to look at; one set of weights for both.

    Before what is given stands one learnt vector for each language, so that there is always something to look at; with
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
