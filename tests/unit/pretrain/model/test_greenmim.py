"""GreenMIM: features at their own units, nothing leaks from masked pixels, the loss is over masked units only."""

from dataclasses import replace

import pytest
import torch

from backbones.build import layout_spec
from backbones.config import BackboneConfig
from backbones.visible.layout import build_layout
from data.config import DataConfig
from pretrain.batches.mask_inputs import mask_tensors
from pretrain.batches.masking import unit_mask
from pretrain.config import MimConfig, PretrainConfig
from pretrain.model.decoder import Decoder, block_at, place_features, sine_cosine_position
from pretrain.model.greenmim import build_model
from pretrain.targets.pixels import unit_pixels

MICRO = BackboneConfig(
    name="swin_tiny_patch4_window7_224",
    img_size=(128, 160),
    window=4,
    embed_dim=16,
    depths=(2, 2, 2, 2),
    num_heads=(1, 2, 4, 8),
)


def micro_config(**mim) -> PretrainConfig:
    mim = MimConfig(**{"decoder_dim": 32, "decoder_heads": 2, **mim})
    return PretrainConfig(data=DataConfig(shards=("",), batch_size=2, micro_batch_size=2), backbone=MICRO, mim=mim)


def micro_batch(model, *, ratio=0.75, images=None):
    mask = unit_mask((4, 5), mask_ratio=ratio, seed=0, step=0, micro_batch=0)
    layout = build_layout(layout_spec(model.encoder), mask.visible).to("cpu")
    if images is None:
        images = torch.randint(256, (2, 3, 128, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return mask, {"images": images, "layout": layout, **mask_tensors(mask, mask.visible_units)}


def test_features_sit_at_their_own_units():
    """With features that name their own unit, every visible unit must hold its own name and the others the token."""
    mask = unit_mask((7, 7), mask_ratio=0.75, seed=3, step=1, micro_batch=0)
    units = torch.from_numpy(mask.visible_units)
    features = units.float().view(1, -1, 1)
    placed = place_features(features, torch.full((1, 1, 1), -1.0), units, 49)[0, :, 0]
    expected = torch.where(torch.from_numpy(mask.visible.ravel()), torch.arange(49.0), -1.0)
    assert torch.equal(placed, expected)


def test_a_block_at_some_units_equals_the_whole_block_there_values_and_gradients():
    torch.manual_seed(0)
    block = Decoder(grid=(3, 4), in_dim=8, out_dim=6, dim=16, depth=1, num_heads=2).double().blocks[0]
    x, units = torch.randn(2, 12, 16, dtype=torch.float64, requires_grad=True), torch.tensor([7, 1, 4])
    weight = torch.randn(2, 3, 16, dtype=torch.float64)
    outputs = block_at(block, x, units), block(x)[:, units]
    ours, whole = (torch.autograd.grad((out * weight).sum(), [x, *block.parameters()]) for out in outputs)
    assert torch.allclose(*outputs, atol=1e-12)
    assert all(torch.allclose(got, expected, atol=1e-12) for got, expected in zip(ours, whole, strict=True))


def test_an_encoded_feature_depends_most_on_the_unit_that_the_decoder_puts_it_at():
    """Perturb each visible unit in turn: of the features, its own changes most (in older code a permuted one)."""
    model = build_model(micro_config()).double().eval()
    mask, batch = micro_batch(model, ratio=0.5)
    x = model.pixels(batch["images"][:1])
    with torch.no_grad():
        before = model.encode(x, batch["layout"])
        assert before.shape == (1, 10, 128)
        for unit in mask.visible_units:
            row, col = divmod(int(unit), 5)
            changed = x.clone()
            changed[:, :, row * 32 : row * 32 + 32, col * 32 : col * 32 + 32] *= -1
            change = (model.encode(changed, batch["layout"]) - before).norm(dim=-1)[0]
            assert batch["feature_units"][change.argmax()] == unit


def test_masked_pixels_change_the_loss_only_through_the_target():
    model = build_model(micro_config()).eval()
    mask, batch = micro_batch(model)
    images = batch.pop("images")
    pixels = unit_pixels(images.float(), (32, 32))
    masked = pixels.clone()
    masked[:, mask.predicted_units] = 7
    from pretrain.targets.pixels import pixels_to_images

    other = pixels_to_images(masked, (32, 32), (4, 5)).byte()
    with torch.no_grad():
        one, two = (model.predict(model.pixels(x), **batch) for x in (images, other))
    assert torch.equal(one, two)


def test_loss_equals_a_plain_computation_over_masked_units():
    model = build_model(micro_config()).double().eval()
    mask, batch = micro_batch(model)
    images = batch.pop("images")
    loss = model(images, **batch)
    x = model.pixels(images)
    predicted = model.predict(x, **batch)
    total, count = 0.0, 0
    for j, unit in enumerate(mask.predicted_units):
        row, col = divmod(int(unit), 5)
        for b in range(2):
            patch = x[b, :, row * 32 : row * 32 + 32, col * 32 : col * 32 + 32].permute(1, 2, 0).reshape(-1)
            target = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            total, count = total + (predicted[b, j] - target).square().mean(), count + 1
    assert torch.allclose(loss, total / count, rtol=1e-12)


def test_weights_are_a_function_of_the_seed():
    config = micro_config()
    one, same = build_model(config), build_model(config)
    other = build_model(replace(config, run=replace(config.run, seed=1)))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.decoder.predict.weight, other.decoder.predict.weight)


def test_linear_weights_are_xavier_and_bias_tables_are_not():
    model = build_model(micro_config())
    linear = model.encoder.layers[2].blocks[0].mlp.fc1
    bound = (6 / (linear.in_features + linear.out_features)) ** 0.5
    assert linear.weight.abs().max() <= bound
    assert linear.weight.detach().std() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert model.encoder.layers[0].blocks[0].attn.relative_position_bias_table.detach().std() == pytest.approx(
        0.02, rel=0.3
    )
    assert all(not p.any() for n, p in model.named_parameters() if n.endswith("bias") and "norm" not in n)


def test_dense_way_takes_the_same_batch_and_sees_no_masked_pixel():
    model = build_model(micro_config(encoder="dense")).eval()
    mask, batch = micro_batch(model)
    images = batch.pop("images")
    masked = images.clone()
    for unit in mask.predicted_units:
        row, col = divmod(int(unit), 5)
        masked[:, :, row * 32 : row * 32 + 32, col * 32 : col * 32 + 32] = 0
    with torch.no_grad():
        one, two = (model.predict(model.pixels(x), **batch) for x in (images, masked))
    assert one.shape == (2, 15, 3072)
    assert torch.equal(one, two)


def test_every_parameter_gets_a_gradient():
    for encoder in ("visible", "dense"):
        model = build_model(micro_config(encoder=encoder))
        _, batch = micro_batch(model)
        model(**batch).backward()
        assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_position_embedding_codes_columns_in_its_first_half():
    position = sine_cosine_position((3, 4), 16)[0].view(3, 4, 16)
    assert torch.equal(position[0, :, :8], position[2, :, :8])
    assert torch.equal(position[:, 1, 8:], position[:, 3, 8:])
    column = torch.arange(4.0)[:, None] * 10000.0 ** (-torch.arange(4) / 4)
    assert torch.allclose(position[0, :, :8], torch.cat([column.sin(), column.cos()], 1), atol=1e-6)


def test_decoder_of_the_published_size_has_the_published_parameters():
    decoder = Decoder(grid=(7, 7), in_dim=1024, out_dim=3072, dim=512, depth=1, num_heads=16)
    trained = sum(parameter.numel() for parameter in decoder.parameters())
    assert decoder.position.numel() == 25_088
    assert trained + decoder.position.numel() == 5_279_744
