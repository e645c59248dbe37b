"""The maps of an image do not depend on what it is batched with, for any backbone."""

import pytest
import torch

from engine.distributed.batch_norm import StepStatistics, step_batch_norm
from engine.loop.optimizer import param_groups
from finetune.config import StartConfig
from finetune.network.pyramid import build_pyramid, dense_start
from finetune.network.start import build_network, resolve_start

SWIN = {"img_size": (64, 64), "embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}
SMALL = {
    "swin_tiny_patch4_window7_224": {**SWIN, "window": 7},
    "swinv2_tiny_window8_256": {**SWIN, "window": 8},
    "secvit_tiny": {},
    "xformer": {},
    "vit_tiny_patch16_224": {},
    "convnext_atto": {},
    "twins_svt_small": {},
    "sec_swin_tiny": {},
}
SIZES = [(64, 96), (33, 64), (96, 70), (50, 90)]


def start_of(name):
    return resolve_start(StartConfig(name=name, **SMALL[name]))


def canvas(sizes, *, filling):
    side = [max(pair[axis] for pair in sizes) for axis in (0, 1)]
    generator = torch.Generator().manual_seed(1)
    images = torch.full((len(sizes), 3, *side), filling)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, :height, :width] = torch.randn(3, height, width, generator=generator)
    return images


@pytest.mark.parametrize("name", SMALL)
def test_maps_of_an_image_in_a_batch_equal_those_of_it_alone(name):
    pyramid = build_pyramid(start_of(name), largest=(96, 96)).eval()
    images = canvas(SIZES, filling=7.0)  # what lies beyond an image must not matter
    with torch.no_grad():
        together = pyramid(images, SIZES)
        for row, (height, width) in enumerate(SIZES):
            padded = torch.zeros(1, 3, -(-height // 32) * 32, -(-width // 32) * 32)
            padded[0, :, :height, :width] = images[row, :, :height, :width]
            for level, alone in enumerate(pyramid(padded)):
                stride = pyramid.strides[level]
                assert alone.shape[1:] == (
                    pyramid.channels[level],
                    padded.shape[2] // stride,
                    padded.shape[3] // stride,
                )
                inside = together[level][row : row + 1]
                assert (inside[:, :, : alone.shape[2], : alone.shape[3]] - alone).abs().max() < 1e-4
                assert inside[:, :, alone.shape[2] :].abs().sum() + inside[:, :, :, alone.shape[3] :].abs().sum() == 0


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "xformer"])
def test_every_trained_parameter_gets_a_gradient_and_names_stay_the_networks_own(name):
    start = start_of(name)
    pyramid = build_pyramid(start)
    own = dict(build_network(dense_start(start), num_classes=0).named_parameters())
    inside = {n.removeprefix("network."): p for n, p in pyramid.named_parameters() if n.startswith("network.")}
    assert {n: p.shape for n, p in inside.items()} == {n: p.shape for n, p in own.items()}
    frozen = {n for n, p in pyramid.named_parameters() if not p.requires_grad}
    assert all("norm" in n or "final_conv" in n for n in frozen)
    torch.stack([x.square().sum() for x in pyramid(torch.randn(1, 3, 64, 96))]).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in pyramid.parameters())


def test_batch_norm_has_one_record_of_a_micro_batch_over_the_images_of_all_sizes():
    pyramid = step_batch_norm(build_pyramid(start_of("xformer"), strides=(8, 16, 32))).train()
    norms = [layer for layer in pyramid.modules() if isinstance(layer, StepStatistics)]
    seen = []
    norms[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().transpose(0, 1).flatten(1)))
    pyramid.groups(torch.randn(3, 3, 96, 96), [(64, 64), (96, 64), (64, 64)])
    assert len(seen) == 2
    assert {len(layer.step_records) for layer in norms} == {0, 1}  # that before a classifier does not run
    values = torch.cat(seen, dim=1)
    torch.testing.assert_close(norms[0].step_records[0], torch.stack((values.mean(1), values.var(1))))


def test_layer_decay_reaches_into_the_backbone_and_leaves_the_rest_alone():
    groups = param_groups(build_pyramid(start_of("swin_tiny_patch4_window7_224")), weight_decay=0.05, layer_decay=0.5)
    scales = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert scales["network.patch_embed.proj.weight"] == 0.5**6
    assert scales["network.layers.3.blocks.0.attn.qkv.weight"] == 0.5
    assert scales["levels.0.weight"] == 1.0


def test_windows_shift_on_large_images_as_they_would_in_a_network_made_for_them():
    start = start_of("swin_tiny_patch4_window7_224")
    small, large = build_pyramid(start), build_pyramid(start, largest=(300, 500))
    windows = [p.get_submodule("network.layers.3.blocks.0").window_size for p in (small, large)]
    assert windows == [(2, 2), (7, 7)]


def test_a_stride_that_a_network_lacks_is_refused_with_those_it_has():
    with pytest.raises(ValueError, match=r"has maps of strides 4, 8, 16, 32, none of 2"):
        build_pyramid(start_of("swin_tiny_patch4_window7_224"), strides=(2, 4))
    with pytest.raises(ValueError, match=r"patches of 14 px has no map of stride 4"):
        build_pyramid(resolve_start(StartConfig(name="vit_small_patch14_dinov2", img_size=(224, 224))))
