"""The SEC backbones on whole maps in the plainest way, with zeros where nothing is visible.

What runs on visible tokens must equal it.
"""

import torch
import torch.nn.functional as F
from torch import nn

from backbones.sec.attention import cluster_attention, num_clusters_for, rotation, turned
from backbones.sec.faster_vit import ConvBlock, NormedDownsample
from backbones.sec.faster_vit import Stem as FasterStem
from backbones.sec.sec_swin import MergeDownsample, PatchEmbed
from backbones.sec.stage import ConvDownsample, ConvStem


def dense_reference(model, x, visible, *, run_block=None):
    """Encode the visible units: their places in the last map.

    ``run_block`` (block, map, which places are seen) runs blocks of other networks.
    """
    x = _stem(model.patch_embed, x * _seen(x, visible), visible)
    for stage in model.layers:
        if stage.downsample is not None:
            x = _downsample(stage.downsample, x, visible)
        for block in stage.blocks:
            if run_block is not None:
                x = run_block(block, x, _seen(x, visible))
            elif isinstance(block, ConvBlock):
                y = F.gelu(_batch_norm(block.norm1, block.conv1(x), visible), approximate="tanh") * _seen(x, visible)
                x = x + _batch_norm(block.norm2, block.conv2(y), visible)
            else:
                x = _attention_block(block, x, _seen(x, visible), rope=stage.rope, num_units=int(visible.sum()))
    tokens = x[:, :, visible].mT
    return model.norm(tokens) if isinstance(model.norm, nn.LayerNorm) else tokens


def _seen(maps, visible):
    side = maps.shape[2] // visible.shape[0]
    return visible.repeat_interleave(side, 0).repeat_interleave(side, 1)


def _stem(stem, x, visible):
    if isinstance(stem, PatchEmbed):
        return _layer_norm(stem.norm, stem.proj(x), visible)
    if isinstance(stem, FasterStem):
        for conv, norm in ((stem.conv1, stem.norm1), (stem.conv2, stem.norm2)):
            x = _batch_norm(norm, conv(x), visible).relu()
        return x
    assert isinstance(stem, ConvStem)
    for layer in stem.proj:
        x = _batch_norm(layer, x, visible) if isinstance(layer, nn.BatchNorm2d) else layer(x)
        x = x * _seen(x, visible)
    return x


def _downsample(layer, x, visible):
    if isinstance(layer, ConvDownsample):
        return _batch_norm(layer.norm, layer.reduction(x), visible)
    if isinstance(layer, NormedDownsample):
        maps = layer.reduction(_layer_norm(layer.norm, x, visible))
        return maps * _seen(maps, visible)
    assert isinstance(layer, MergeDownsample)
    cells = torch.cat([x[:, :, row::2, col::2] for col in (0, 1) for row in (0, 1)], dim=1)
    maps = _layer_norm(layer.norm, cells, visible)
    return F.conv2d(maps, layer.reduction.weight[:, :, None, None])


def _batch_norm(layer, maps, visible):
    """Normalise the visible places, by their own statistics in training."""
    keep = _seen(maps, visible)
    values = maps[:, :, keep]  # b c n
    mean, var = (
        (values.mean((0, 2)), values.var((0, 2), correction=0))
        if layer.training
        else (layer.running_mean, layer.running_var)
    )
    scale = layer.weight / (var + layer.eps).sqrt()
    return ((maps - mean[:, None, None]) * scale[:, None, None] + layer.bias[:, None, None]) * keep


def _layer_norm(layer, maps, visible):
    return layer(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) * _seen(maps, visible)


def tokens_of(maps, keep):
    """The tokens [b n c] of the places to keep."""
    return maps[:, :, keep].mT


def map_of(tokens, keep):
    """A map with tokens [b n c] at the places that are kept, and zeros."""
    whole = tokens.new_zeros(len(tokens), tokens.shape[-1], keep.numel())
    return whole.index_copy(2, keep.flatten().nonzero().flatten(), tokens.mT).unflatten(2, keep.shape)


def _attention_block(block, x, keep, *, rope, num_units):
    def tokens(maps):
        return tokens_of(maps, keep)

    def maps(values):
        return map_of(values, keep)

    if block.pos is not None:
        x = (x + block.pos(x)) * keep
    attn = block.attn
    qkv = attn.qkv(block.norm1(tokens(x))).unflatten(-1, (3, attn.num_heads, -1))
    q, k, v = qkv.unbind(2)
    if rope:
        q, k, v = turned(qkv, rotation(keep.nonzero(), q.shape[-1], dtype=x.dtype))
    clusters = num_clusters_for(num_units, at_224=attn.num_clusters) if attn.scale_clusters else attn.num_clusters
    out = cluster_attention(q, k, v, num_clusters=clusters, global_token=attn.global_token).flatten(2)
    if attn.lepe is not None:
        out = out + tokens(attn.lepe(maps(v.flatten(2))))
    x = x + maps(attn.out_proj(out))
    y = maps(F.gelu(block.ffn.fc1(block.norm2(tokens(x)))))
    if block.ffn.dwconv is not None:
        y = y + block.ffn.dwconv(y)
    return x + maps(block.ffn.fc2(tokens(y)))
