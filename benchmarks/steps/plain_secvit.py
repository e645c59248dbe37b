"""SecViT as its published listing reads, to measure ours against: maps in NCHW, 1x1 convolutions, scores written out,
rows gathered with an index repeated over the channels, and a second sort to undo the first. Weights have the published
names.

Legend: b batch, c channels, y x rows and columns, n tokens, h heads, d channels per head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class PlainSecViT(nn.Module):
    """SecViT, version 2, at 224 px; ``model`` is one of ours, whose sizes it takes."""

    def __init__(self, model: Any, *, clusters: tuple[int, ...] = (32, 8, 2, 1)) -> None:
        super().__init__()
        dims = [info["num_chs"] for info in model.feature_info]
        self.patch_embed: Any = nn.Module()
        self.patch_embed.proj = _stem(dims[0])
        self.layers: Any = nn.ModuleList()
        for i, dim in enumerate(dims):
            layer: Any = nn.Module()
            heads = model.layers[i].blocks[0].attn.num_heads
            layer.blocks = nn.ModuleList(
                PlainBlock(dim, heads=heads, clusters=clusters[i], scaled=block.gamma_1 is not None)
                for block in model.layers[i].blocks
            )
            if i + 1 < len(dims):
                layer.downsample = nn.Module()
                layer.downsample.reduction = nn.Conv2d(dim, dims[i + 1], 3, stride=2, padding=1)
                layer.downsample.norm = nn.BatchNorm2d(dims[i + 1])
            layer.RoPE = nn.Module()
            angle = 1.0 / 10000 ** torch.linspace(0, 1, dim // heads // 4)
            layer.RoPE.register_buffer("angle", angle.unsqueeze(-1).repeat(1, 2).flatten())
            self.layers.append(layer)
        if model.num_classes:
            self.proj = nn.Conv2d(dims[-1], 1024, 1)
            self.norm = nn.BatchNorm2d(1024)
            self.head = nn.Conv2d(1024, model.num_classes, 1)

    def forward_features(self, x: Float[Tensor, "b 3 y x"]) -> Tensor:
        """Compute the map of the last stage."""
        x = self.patch_embed.proj(x)
        for layer in self.layers:
            sin, cos = _positions(layer.RoPE.angle, x.shape[2], x.shape[3])
            for block in layer.blocks:
                x = block(x, sin, cos)
            if hasattr(layer, "downsample"):
                x = layer.downsample.norm(layer.downsample.reduction(x))
        return x

    def forward(self, x: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b classes"]:
        """Compute the logits."""
        x = self.norm(self.proj(self.forward_features(x)))
        x = x * x.sigmoid()
        return self.head(x.mean((2, 3), keepdim=True)).flatten(1)


class PlainBlock(nn.Module):
    """One block."""

    def __init__(self, dim: int, *, heads: int, clusters: int, scaled: bool) -> None:
        super().__init__()
        self.pos = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = PlainNorm(dim)
        self.attn = PlainAttention(dim, heads=heads, clusters=clusters)
        self.norm2 = PlainNorm(dim)
        self.ffn = PlainMlp(dim)
        self.gamma_1 = nn.Parameter(torch.full((1, dim, 1, 1), 1e-6)) if scaled else None
        self.gamma_2 = nn.Parameter(torch.full((1, dim, 1, 1), 1e-6)) if scaled else None

    def forward(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        """Compute the map after the block."""
        x = x + self.pos(x)
        first = self.attn(self.norm1(x), sin, cos)
        x = x + (first if self.gamma_1 is None else self.gamma_1 * first)
        second = self.ffn(self.norm2(x))
        return x + (second if self.gamma_2 is None else self.gamma_2 * second)


class PlainNorm(nn.Module):
    """LayerNorm over the channels of a map."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the map."""
        return self.norm(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2).contiguous()


class PlainMlp(nn.Module):
    """The convolutional MLP."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, 3 * dim, 1)
        self.dwconv = nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim)
        self.fc2 = nn.Conv2d(3 * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the map after the MLP."""
        x = F.gelu(self.fc1(x))
        return self.fc2(x + self.dwconv(x))


class PlainAttention(nn.Module):
    """Attention inside clusters."""

    def __init__(self, dim: int, *, heads: int, clusters: int) -> None:
        super().__init__()
        self.heads, self.clusters = heads, clusters
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.lepe = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.out_proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        """Compute the attended map."""
        batch, dim, height, width = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=1)
        local = self.lepe(v)
        q, k, v = (t.reshape(batch, self.heads, -1, height * width).transpose(2, 3) for t in (q, k, v))
        q, k = _turn(q, sin, cos), _turn(k, sin, cos) * (dim // self.heads) ** -0.5
        out = self.clustered(q, k, v) if self.clusters > 1 else (q @ k.transpose(-1, -2)).softmax(-1) @ v
        out = out.transpose(2, 3).reshape(batch, dim, height, width)
        return self.out_proj(out + local)

    def clustered(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend inside clusters of tokens [b h n d]."""
        with torch.no_grad():
            similarity = F.cosine_similarity(k.mean(2, keepdim=True), k, dim=-1)
            order = similarity.argsort(dim=-1)
            back = order.argsort(dim=-1)
        index = order.unsqueeze(-1).expand(-1, -1, -1, q.shape[-1])
        q, k, v = (t.gather(2, index).unflatten(2, (self.clusters, -1)) for t in (q, k, v))
        out = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return out.flatten(2, 3).gather(2, back.unsqueeze(-1).expand(-1, -1, -1, v.shape[-1]))


def _stem(dim: int) -> nn.Sequential:
    half, layers = dim // 2, []
    for source, target, stride in ((3, half, 2), (half, half, 1), (half, half, 1), (half, dim, 2)):
        layers += [nn.Conv2d(source, target, 3, stride=stride, padding=1), nn.BatchNorm2d(target), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def _positions(angle: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Sines and cosines [n d], rows in the first half, columns in the second."""
    rows = (torch.arange(height, device=angle.device)[:, None] * angle)[:, None].expand(-1, width, -1)
    cols = (torch.arange(width, device=angle.device)[:, None] * angle)[None].expand(height, -1, -1)
    both = torch.cat([rows, cols], dim=-1).flatten(0, 1)
    return both.sin(), both.cos()


def _turn(x: Float[Tensor, "b h n d"], sin: Tensor, cos: Tensor) -> Float[Tensor, "b h n d"]:
    swapped = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return x * cos + swapped * sin
