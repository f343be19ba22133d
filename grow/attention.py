"""Attention and encoder layers that can be edited, in the place of torch's.

torch's own trace as one leaf and refuse a number of heads that does not divide the width. Here the heads are whatever the rows
of q, k and v hold; only the width of a head is fixed.

Legend: B batch, N positions, E width of the model, h heads, d entries of a head, F hidden units of the feed-forward part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from grow.layers import copied


class AttentionError(ValueError):
    """An option of torch's attention that ours does not have."""


class Attention(nn.Module):
    """Multi-head attention with the weights of torch's. Vaswani et al. 2017, arXiv 1706.03762, section 3.2.2."""

    def __init__(self, module: nn.MultiheadAttention, path: str) -> None:
        super().__init__()
        if module.bias_k is not None or module.bias_v is not None:
            raise AttentionError(f"module {path!r} has add_bias_kv=True, but must have False; leave it out")
        if module.add_zero_attn:
            raise AttentionError(f"module {path!r} has add_zero_attn=True, but must have False; leave it out")
        self.path, self.head_width, self.batch_first = path, module.head_dim, module.batch_first
        self.q, self.k, self.v = _projections(module)
        self.out = _linear(module.out_proj.weight, module.out_proj.bias)
        self.dropout = nn.Dropout(module.dropout)
        self.train(module.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Query (B, N, E), key and value (B, M, E) -> (B, N, E) and no weights; (N, B, E) unless ``batch_first``."""
        if key_padding_mask is not None or attn_mask is not None or is_causal:
            name = "key_padding_mask" if key_padding_mask is not None else "attn_mask" if attn_mask is not None else "is_causal"
            raise AttentionError(f"module {self.path!r} is called with {name}, but must be called without; write the masked attention out")
        q, k, v = (self._heads(projection(x)) for projection, x in ((self.q, query), (self.k, key), (self.v, value)))  # (B, h, N, d)
        weights = torch.softmax(q @ k.transpose(-2, -1) * self.head_width**-0.5, -1)  # (B, h, N, M)
        joined = (self.dropout(weights) @ v).transpose(1, 2).flatten(2)  # (B, N, h * d)
        return self.out(joined if self.batch_first else joined.transpose(0, 1)), None

    def _heads(self, x: Tensor) -> Tensor:
        """Rows (B, N, h * d) or (N, B, h * d) -> (B, h, N, d)."""
        x = x if self.batch_first else x.transpose(0, 1)
        heads: Tensor = x.unflatten(-1, (-1, self.head_width))  # type: ignore[no-untyped-call]
        return heads.transpose(1, 2)


class EncoderLayer(nn.Module):
    """One encoder layer with the weights of torch's: attention and a feed-forward part, each added to the stream."""

    def __init__(self, module: nn.TransformerEncoderLayer, path: str) -> None:
        super().__init__()
        self.path, self.norm_first = path, module.norm_first
        self.attention = Attention(module.self_attn, f"{path}.self_attn".lstrip("."))
        self.norm1, self.norm2 = module.norm1, module.norm2
        self.fc1, self.fc2 = module.linear1, module.linear2
        self.dropout, self.dropout1, self.dropout2 = module.dropout, module.dropout1, module.dropout2
        self.activation: Callable[[Tensor], Tensor] = module.activation
        self.train(module.training)

    def forward(
        self, src: Tensor, src_mask: Tensor | None = None, src_key_padding_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """X (B, N, E) -> (B, N, E)."""
        _refuse_masks(self.path, src_mask=src_mask, src_key_padding_mask=src_key_padding_mask, is_causal=is_causal or None)
        if self.norm_first:
            src = src + self._attended(self.norm1(src))
            return src + self._fed_forward(self.norm2(src))
        src = self.norm1(src + self._attended(src))
        x: Tensor = self.norm2(src + self._fed_forward(src))
        return x

    def _attended(self, x: Tensor) -> Tensor:
        found: Tensor = self.dropout1(self.attention(x, x, x)[0])
        return found

    def _fed_forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.dropout2(self.fc2(self.dropout(self.activation(self.fc1(x)))))
        return found


class Encoder(nn.Module):
    """A stack of encoder layers, and the norm behind them."""

    def __init__(self, module: nn.TransformerEncoder, path: str) -> None:
        super().__init__()
        self.path = path
        self.layers, self.norm = module.layers, module.norm

    def forward(
        self, src: Tensor, mask: Tensor | None = None, src_key_padding_mask: Tensor | None = None, is_causal: bool | None = None
    ) -> Tensor:
        """X (B, N, E) -> (B, N, E)."""
        _refuse_masks(self.path, mask=mask, src_key_padding_mask=src_key_padding_mask, is_causal=is_causal or None)
        for layer in self.layers:
            src = layer(src)
        return src if self.norm is None else self.norm(src)


def without_torch_attention(module: nn.Module, path: str = "") -> nn.Module:
    """The module with ours in the place of torch's attention and encoders. Changes the module given."""
    if isinstance(module, nn.MultiheadAttention):
        return Attention(module, path)
    if isinstance(module, nn.TransformerEncoderLayer):
        return EncoderLayer(module, path)
    for name, child in module.named_children():
        setattr(module, name, without_torch_attention(child, f"{path}.{name}".lstrip(".")))
    return Encoder(module, path) if isinstance(module, nn.TransformerEncoder) else module


def _refuse_masks(path: str, **given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise AttentionError(f"module {path!r} is called with {name}, but must be called without; write the masked attention out")


def _projections(module: nn.MultiheadAttention) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    """Layers for query, key and value; torch keeps them as one tensor where the widths are equal."""
    if module._qkv_same_embed_dim:
        weights = _thirds(module.in_proj_weight)
    else:
        weights = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    joined: Tensor | None = getattr(module, "in_proj_bias", None)
    biases = [None] * 3 if joined is None else _thirds(joined)
    q, k, v = (_linear(weight, bias) for weight, bias in zip(weights, biases, strict=True))
    return q, k, v


def _thirds(joined: Tensor) -> Sequence[Tensor]:
    """Query's, key's and value's rows, trained if the whole is."""
    return [third.detach().requires_grad_(joined.requires_grad) for third in joined.chunk(3)]


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = copied(weight)
    if bias is not None:
        layer.bias = copied(bias)
    return layer
