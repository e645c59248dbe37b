"""A plain dense forward of Swin and Swin V2 with exact windows: every token looks for the tokens of its window."""

import math

import torch
from timm.models.swin_transformer import SwinTransformer


def forward_reference(model, images, visible):
    """Encode images as [b, units, c], where only tokens of ``visible`` units [rows, cols] are seen by others."""
    x = model.patch_embed(images)
    for stage in model.layers:
        x = stage.downsample(x)
        seen = visible
        for axis in (0, 1):
            seen = seen.repeat_interleave(x.shape[1 + axis] // visible.shape[axis], axis)
        for block in stage.blocks:
            x = _block_v1(block, x, seen) if isinstance(model, SwinTransformer) else _block_v2(block, x, seen)
    return model.norm(x).flatten(1, 2)


def _block_v1(block, x, seen):
    attn = block.attn
    q, k, v = _heads(attn.qkv(block.norm1(x)), attn.num_heads)

    def bias(delta):
        return attn.relative_position_bias_table[_table_row(delta, block.window_size)].permute(2, 0, 1)

    x = x + attn.proj(
        _attend(x, seen, block, v, lambda i, j, d: _per_head(q, i) @ _per_head(k, j).mT * attn.scale + bias(d))
    )
    return x + block.mlp(block.norm2(x))


def _block_v2(block, x, seen):
    attn = block.attn
    no_bias = torch.zeros_like(attn.q_bias)
    qkv = x @ attn.qkv.weight.T + torch.cat([attn.q_bias, no_bias, attn.v_bias])
    q, k, v = _heads(qkv, attn.num_heads)
    scale = torch.clamp(attn.logit_scale, max=math.log(100)).exp()

    def bias(delta):
        pretrained = attn.pretrained_window_size
        span = [pretrained[axis] or block.window_size[axis] for axis in (0, 1)]
        span = torch.tensor([max(side - 1, 1) for side in span], dtype=x.dtype)
        steps = delta.to(x.dtype) / span * 8
        steps = steps.sign() * torch.log2(1 + steps.abs()) / 3
        return 16 * torch.sigmoid(attn.cpb_mlp(steps)).permute(2, 0, 1)

    def scores(i, j, delta):
        qi, kj = _per_head(q, i), _per_head(k, j)
        qi, kj = qi / qi.norm(dim=-1, keepdim=True), kj / kj.norm(dim=-1, keepdim=True)
        return qi @ kj.mT * scale + bias(delta)

    x = x + block.norm1(attn.proj(_attend(x, seen, block, v, scores)))
    return x + block.norm2(block.mlp(x))


def _attend(x, seen, block, v, scores):
    """Let each seen token attend to the seen tokens of its window."""
    height, width = x.shape[1:3]
    windows = {}
    for row in range(height):
        for col in range(width):
            if seen[row, col]:
                key = tuple(
                    (at - s) // w for at, s, w in zip((row, col), block.shift_size, block.window_size, strict=True)
                )
                windows.setdefault(key, []).append((row, col))
    out = torch.zeros_like(v)
    for tokens in windows.values():
        at = torch.tensor(tokens)
        i = at[:, 0] * width + at[:, 1]
        weights = scores(i, i, at[:, None] - at[None, :]).softmax(-1)
        out = out.index_copy(1, i, (weights @ _per_head(v, i)).transpose(1, 2))
    return out.flatten(2).unflatten(1, (height, width))


def _heads(qkv, num_heads):
    return qkv.flatten(1, 2).unflatten(-1, (3, num_heads, -1)).unbind(2)  # b (h w) (3 heads d) -> 3 of b (h w) heads d


def _per_head(x, tokens):
    return x[:, tokens].transpose(1, 2)


def _table_row(delta, window):
    return (delta[..., 0] + window[0] - 1) * (2 * window[1] - 1) + delta[..., 1] + window[1] - 1
