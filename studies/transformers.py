"""Transformers as start networks. Outputs are logits (B, classes).

Legend: B batch, N positions, E width of the stream, h heads, d entries of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions, an encoder. Dosovitskiy et al. 2021, arXiv 2010.11929."""

    def __init__(self, image: int, patch: int, width: int, heads: int, layers: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (image // patch) ** 2 + 1, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, functional.gelu, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """X (B, 3, H, W) -> (B, classes)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)  # (B, N, E)
        tokens = torch.cat([self.token.expand(tokens.size(0), -1, -1), tokens], 1) + self.positions
        logits: Tensor = self.head(self.encoder(tokens)[:, 0])
        return logits


def vit_small(
    image: int = 32, patch: int = 4, width: int = 96, heads: int = 4, layers: int = 4, classes: int = CLASSES
) -> VisionTransformer:
    """A vision transformer for 32x32 images."""
    return VisionTransformer(image, patch, width, heads, layers, classes)


class Block(nn.Module):
    """Attention with one projection for q, k and v, and a feed-forward part; each reads the normalised stream and adds to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """X (B, N, E) -> (B, N, E)."""
        b, n, e = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, e // self.heads).permute(2, 0, 3, 1, 4).unbind(0)  # (B, h, N, d)
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, e)
        x = x + self.out(attended)
        y: Tensor = x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))
        return y


class SequenceTransformer(nn.Module):
    """Embedding, learned positions, blocks, the mean over positions."""

    def __init__(self, tokens: int, length: int, width: int, heads: int, layers: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.positions = nn.Parameter(torch.randn(1, length, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Token numbers (B, N) -> (B, classes)."""
        stream = self.embedding(x) + self.positions[:, : x.size(1)]
        logits: Tensor = self.head(self.norm(self.blocks(stream)).mean(1))
        return logits


def sequence_small(
    tokens: int = 256, length: int = 64, width: int = 64, heads: int = 4, layers: int = 2, classes: int = CLASSES
) -> SequenceTransformer:
    """A transformer that classifies sequences of at most ``length`` bytes."""
    return SequenceTransformer(tokens, length, width, heads, layers, classes)
