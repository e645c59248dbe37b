"""The maps of a plain ViT after chosen blocks, as SegViT takes them, with Shrunk's query-based downsampling inside.

timm's own modules and parameters. The class token (and registers) are embedded, then dropped before the blocks or taken
through them; they are never part of a map. Position embeddings are resized to the grid of the image, square or not.
Images whose sides are no multiple of the patch are padded with zeros, which is the mean colour, below and to the right.

Legend: b images, h w height and width in pixels, t tokens, s tokens at even places, c channels.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from engine.errors import UserError
from engine.terms import Size


class VitLayers(nn.Module):
    """Maps of stride ``patch`` after the blocks ``layers``; of twice that stride from block ``shrink_block`` on.

    Args:
        network: timm's, without a classifier, made with ``dynamic_img_size=True``.
        layers: numbers of blocks, from 0, rising.
        class_token: whether the tokens before the patches go through the blocks.
        shrink_block: the block that halves rows and columns; None is none.
        shrink_of: q: only this block's queries are fewer, not keys and values; qkv: the block sees the fewer tokens.

    Raises:
        UserError: the network is no plain ViT, or has fewer blocks.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        layers: Sequence[int],
        class_token: bool,
        shrink_block: int | None = None,
        shrink_of: Literal["q", "qkv"] = "q",
    ) -> None:
        super().__init__()
        if not isinstance(network, VisionTransformer):
            raise UserError(f"taking layers and shrinking need a plain ViT of timm's, got a {type(network).__name__}")
        depth = len(network.blocks)
        if list(layers) != sorted(set(layers)) or not all(0 <= layer < depth for layer in layers):
            raise UserError(f"segmenter.layers must be rising numbers of blocks from 0 to {depth - 1}, got {layers}")
        if shrink_block is not None and not 0 <= shrink_block < depth:
            raise UserError(f"segmenter.shrink-block must lie in 0 to {depth - 1}, got {shrink_block}")
        self.network: Any = network
        self.layers, self.class_token = tuple(layers), class_token
        self.shrink_block, self.shrink_of = shrink_block, shrink_of
        for unused in (*network.blocks[max(layers) + 1 :], network.norm, network.fc_norm):
            unused.requires_grad_(False)  # kept for the hand-off, never computed
        self.channels = (network.embed_dim,) * len(layers)

    @property
    def patch(self) -> Size:
        """Height and width of a patch in pixels."""
        return self.network.patch_embed.patch_size

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Compute the maps, NCHW, in the order of the layers."""
        tokens, grid = self._embedded(images)
        first = tokens.shape[1] - grid[0] * grid[1]
        maps: list[Tensor] = []
        for number, block in enumerate(self.network.blocks[: self.layers[-1] + 1]):
            if number == self.shrink_block:
                places = _even_places(grid, first=first, device=tokens.device)
                tokens = _shrunk(block, tokens, places) if self.shrink_of == "q" else block(tokens[:, places])
                grid = (-(-grid[0] // 2), -(-grid[1] // 2))
            else:
                tokens = block(tokens)
            if number in self.layers:
                maps.append(rearrange(tokens[:, first:], "b (r c) d -> b d r c", r=grid[0]))
        return maps

    def _embedded(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b t c"], Size]:
        """Embed the patches, and the tokens before them where those go through the blocks; also return the grid."""
        height, width = self.patch
        images = F.pad(images, (0, -images.shape[3] % width, 0, -images.shape[2] % height))
        grid = (images.shape[2] // height, images.shape[3] // width)
        tokens = self.network._pos_embed(self.network.patch_embed(images))
        if not self.class_token:
            tokens = tokens[:, self.network.num_prefix_tokens :]
        return self.network.norm_pre(tokens), grid


def _even_places(grid: Size, *, first: int, device: torch.device) -> Tensor:
    """Number the ``first`` tokens and those at even rows and columns after them."""
    places = torch.arange(grid[0] * grid[1], device=device).view(grid)[::2, ::2].flatten() + first
    return torch.cat([torch.arange(first, device=device), places])


def _shrunk(block: Any, x: Float[Tensor, "b t c"], places: Tensor) -> Float[Tensor, "b s c"]:
    """Run a block for the tokens at ``places`` alone, attending to all (SegViT's QD)."""
    normed = block.norm1(x)
    gathered = _attend(block.attn, normed[:, places], normed)
    x = x[:, places] + block.drop_path1(block.ls1(gathered))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def _attend(attn: Any, queries: Float[Tensor, "b s c"], memory: Float[Tensor, "b t c"]) -> Float[Tensor, "b s c"]:
    """Attend from ``queries`` to ``memory`` by the projections of timm's attention."""
    rows = (attn.num_heads * attn.head_dim, 2 * attn.num_heads * attn.head_dim)
    weights = attn.qkv.weight.split(rows)
    biases = attn.qkv.bias.split(rows) if attn.qkv.bias is not None else (None, None)
    q = rearrange(F.linear(queries, weights[0], biases[0]), "b t (n e) -> b n t e", n=attn.num_heads)
    k, v = rearrange(F.linear(memory, weights[1], biases[1]), "b t (two n e) -> two b n t e", two=2, n=attn.num_heads)
    dropout = attn.attn_drop.p if attn.training else 0.0
    gathered = F.scaled_dot_product_attention(attn.q_norm(q), attn.k_norm(k), v, dropout_p=dropout)
    return attn.proj_drop(attn.proj(attn.norm(rearrange(gathered, "b n t e -> b t (n e)"))))
