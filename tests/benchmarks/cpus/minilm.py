"""MiniLM-L6 (sentence-transformers/all-MiniLM-L6-v2), with the names of its published weights."""

import math

import torch
from torch import nn
from torch.nn import functional as F

_WIDTH, _HEADS, _LAYERS, _POSITIONS, _WORDS = 384, 12, 6, 512, 30522
_EPS = 1e-12


class SentenceEncoder(nn.Module):
    """The mean of BERT's last layer over all tokens, for sentences of one length."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(_WORDS, _WIDTH),
                "position_embeddings": nn.Embedding(_POSITIONS, _WIDTH),
                "token_type_embeddings": nn.Embedding(2, _WIDTH),
                "LayerNorm": nn.LayerNorm(_WIDTH, _EPS),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_Layer() for _ in range(_LAYERS))})

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return (n, 384) of ids (n, tokens)."""
        parts = self.embeddings
        fixed = parts["position_embeddings"].weight[: ids.shape[1]]
        fixed = fixed + parts["token_type_embeddings"].weight[0]
        states = parts["LayerNorm"](parts["word_embeddings"](ids) + fixed)
        for layer in self.encoder["layer"]:
            states = layer(states)
        return states.mean(1)


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        linear = {name: nn.Linear(_WIDTH, _WIDTH) for name in ("query", "key", "value")}
        self.attention = nn.ModuleDict({"self": nn.ModuleDict(linear), "output": _output(_WIDTH)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(_WIDTH, 4 * _WIDTH)})
        self.output = _output(4 * _WIDTH)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        mixed = self._attend(states)
        states = _closed(self.attention["output"], mixed, states)
        wide = F.gelu(self.intermediate["dense"](states))
        return _closed(self.output, wide, states)

    def _attend(self, states: torch.Tensor) -> torch.Tensor:
        _, tokens, width = states.shape
        own = self.attention["self"]
        query, key, value = (
            own[name](states).reshape(-1, tokens, _HEADS, width // _HEADS).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        scores = query @ key.transpose(2, 3) / math.sqrt(width // _HEADS)
        return (scores.softmax(-1) @ value).transpose(1, 2).reshape(-1, tokens, width)


def _output(width: int) -> nn.ModuleDict:
    return nn.ModuleDict(
        {"dense": nn.Linear(width, _WIDTH), "LayerNorm": nn.LayerNorm(_WIDTH, _EPS)}
    )


def _closed(parts: nn.ModuleDict, found: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    return parts["LayerNorm"](parts["dense"](found) + before)
