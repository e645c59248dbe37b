"""Attention to mask: class queries whose similarities with a map's places are the masks (SegViT, arXiv 2210.05844).

A decoder layer is post-norm: self-attention over the queries, attention to the map, an MLP. Where it attends to the map
its similarities before the softmax, averaged over the heads, are the logits of each query's mask.

Legend: b images, q queries, l places of a map, d channels, n heads, e channels of a head.
"""

from copy import deepcopy

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

DROPOUT = 0.1
MLP_RATIO = 4


class Attention(nn.Module):
    """Multi-head attention with torch's packed projection, in plain products, which are counted and exported."""

    def __init__(self, dim: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, queries: Float[Tensor, "b q d"], memory: Float[Tensor, "b l d"]) -> Float[Tensor, "b q d"]:
        """Gather what each query attends to in ``memory``."""
        dim = queries.shape[-1]
        weights, biases = self.in_proj.weight.split((dim, 2 * dim)), self.in_proj.bias.split((dim, 2 * dim))
        keys, values = F.linear(memory, weights[1], biases[1]).chunk(2, dim=-1)
        projected = F.linear(queries, weights[0], biases[0])
        split = [rearrange(x, "b t (n e) -> b n t e", n=self.num_heads) for x in (projected, keys, values)]
        gathered = F.scaled_dot_product_attention(*split, dropout_p=DROPOUT if self.training else 0.0)
        return self.out_proj(rearrange(gathered, "b n q e -> b q (n e)"))


class MaskAttention(nn.Module):
    """Attention from queries to a map that also returns the logits of the queries' masks."""

    def __init__(self, dim: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(
        self, queries: Float[Tensor, "b q d"], memory: Float[Tensor, "b l d"]
    ) -> tuple[Float[Tensor, "b q d"], Float[Tensor, "b q l"]]:
        """Gather what the queries attend to; also return the similarities before the softmax, averaged over heads."""
        projected = (self.q(queries), self.k(memory), self.v(memory))
        projected_queries, keys, values = (rearrange(x, "b t (n e) -> b n t e", n=self.num_heads) for x in projected)
        similarities = (projected_queries * projected_queries.shape[-1] ** -0.5) @ keys.transpose(-2, -1)
        shares = F.dropout(similarities.softmax(dim=-1), DROPOUT, self.training)
        gathered = self.proj(rearrange(shares @ values, "b n q e -> b q (n e)"))
        return gathered, similarities.mean(dim=1)


class DecoderLayer(nn.Module):
    """Self-attention, attention to a map and an MLP, each added and then normalised; without positions."""

    def __init__(self, dim: int, cross: nn.Module, *, num_heads: int) -> None:
        super().__init__()
        self.self_attention = Attention(dim, num_heads=num_heads)
        self.cross_attention = cross
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.mlp = nn.Sequential(
            nn.Linear(dim, MLP_RATIO * dim), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(MLP_RATIO * dim, dim)
        )

    def forward(
        self, queries: Float[Tensor, "b q d"], memory: Float[Tensor, "b l d"]
    ) -> tuple[Float[Tensor, "b q d"], Float[Tensor, "b q l"] | None]:
        """Update the queries; also return the logits of their masks where the attention to the map has some."""
        queries = self.norm1(queries + self._dropped(self.self_attention(queries, queries)))
        output = self.cross_attention(queries, memory)
        gathered, masks = output if isinstance(output, tuple) else (output, None)
        queries = self.norm2(queries + self._dropped(gathered))
        return self.norm3(queries + self._dropped(self.mlp(queries))), masks

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, DROPOUT, self.training)


class AtmStage(nn.Module):
    """Layers that attend to one map; each says where its queries' masks are."""

    def __init__(self, dim: int, *, num_heads: int, depth: int) -> None:
        super().__init__()
        self.layers = _copies(
            DecoderLayer(dim, MaskAttention(dim, num_heads=num_heads), num_heads=num_heads), count=depth
        )

    def forward(
        self, queries: Float[Tensor, "b q d"], memory: Float[Tensor, "b l d"]
    ) -> list[tuple[Float[Tensor, "b q d"], Float[Tensor, "b q l"]]]:
        """Queries and mask logits after each layer."""
        outputs: list[tuple[Tensor, Tensor]] = []
        for layer in self.layers:
            queries, masks = layer(queries, memory)
            outputs.append((queries, masks))
        return outputs


class PlainDecoder(nn.Module):
    """The same layers with ordinary attention to the map (the query-based upsampling of Shrunk)."""

    def __init__(self, dim: int, *, num_heads: int, depth: int) -> None:
        super().__init__()
        self.layers = _copies(DecoderLayer(dim, Attention(dim, num_heads=num_heads), num_heads=num_heads), count=depth)

    def forward(self, queries: Float[Tensor, "b q d"], memory: Float[Tensor, "b l d"]) -> Float[Tensor, "b q d"]:
        """Update the queries by all layers."""
        for layer in self.layers:
            queries, _ = layer(queries, memory)
        return queries


class Projection(nn.Module):
    """A map's places as tokens, a linear layer to the head's width, and a LayerNorm."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b l d"]:
        """Make tokens in raster order."""
        return self.norm(self.linear(rearrange(features, "b c h w -> b (h w) c")))


@torch.no_grad()
def init_decoder(module: nn.Module) -> None:
    """Draw a head's first weights: linear layers trunc_normal(0.02) with zero bias, packed projections Xavier-uniform.

    Copied layers start with one and the same packed projection, as in the published code.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    for stage in module.modules():
        if isinstance(stage, AtmStage | PlainDecoder):
            _init_packed(stage)


def _init_packed(stage: AtmStage | PlainDecoder) -> None:
    first, *others = stage.layers.children()
    for name, attention in first.named_modules():
        if isinstance(attention, Attention):
            nn.init.xavier_uniform_(attention.in_proj.weight)
            for other in others:
                other.get_parameter(f"{name}.in_proj.weight").copy_(attention.in_proj.weight)


def _copies(layer: DecoderLayer, *, count: int) -> nn.ModuleList:
    return nn.ModuleList(deepcopy(layer) for _ in range(count))
