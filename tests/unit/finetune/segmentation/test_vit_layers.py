"""The maps of a plain ViT against timm's own, with and without class token, shrunk inside, at any size."""

import pytest
import timm
import torch

from finetune.segmentation.vit_layers import VitLayers


def vit(**options):
    torch.manual_seed(0)
    sizes = {"img_size": 64, "embed_dim": 24, "depth": 4, "num_heads": 2}
    network = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, num_classes=0, **sizes, **options)
    return network.eval()


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_with_the_class_token_maps_are_timms(size):
    network, images = vit(), torch.randn(2, 3, *size)
    expected = network.forward_intermediates(images, indices=[1, 3], norm=False, intermediates_only=True)
    for ours, theirs in zip(VitLayers(network, layers=(1, 3), class_token=True)(images), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_without_it_maps_are_those_of_a_network_that_has_none():
    network, images = vit(), torch.randn(2, 3, 48, 64)
    without = vit(class_token=False, global_pool="avg")
    state = {name: value for name, value in network.state_dict().items() if name != "cls_token"}
    state["pos_embed"] = network.pos_embed[:, 1:]
    state["fc_norm.weight"], state["fc_norm.bias"] = state.pop("norm.weight"), state.pop("norm.bias")
    without.load_state_dict(state)
    (expected,) = without.forward_intermediates(images, indices=[2], norm=False, intermediates_only=True)
    (found,) = VitLayers(network, layers=(2,), class_token=False)(images)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("class_token", [False, True])
def test_shrinking_queries_alone_is_the_whole_blocks_output_at_even_places(class_token):
    """A block's output at a place depends on the other places through keys and values only."""
    network, images = vit(), torch.randn(2, 3, 80, 48)
    whole = VitLayers(network, layers=(1, 2), class_token=class_token)(images)
    shrunk = VitLayers(network, layers=(1, 2), class_token=class_token, shrink_block=2)(images)
    torch.testing.assert_close(shrunk[0], whole[0])
    torch.testing.assert_close(shrunk[1], whole[1][:, :, ::2, ::2])


def test_shrinking_queries_keys_and_values_sees_the_fewer_tokens_alone():
    network, images = vit(), torch.randn(1, 3, 64, 64)
    before, after = VitLayers(network, layers=(1, 2), class_token=False, shrink_block=2, shrink_of="qkv")(images)
    tokens = before[:, :, ::2, ::2].flatten(2).transpose(1, 2)
    torch.testing.assert_close(after.flatten(2).transpose(1, 2), network.blocks[2](tokens))


def test_an_image_that_no_patch_divides_is_padded_below_and_to_the_right():
    network, images = vit(), torch.randn(1, 3, 50, 61)
    padded = torch.zeros(1, 3, 64, 64)
    padded[:, :, :50, :61] = images
    ours, theirs = (VitLayers(network, layers=(3,), class_token=False)(x)[0] for x in (images, padded))
    assert torch.equal(ours, theirs)


def test_what_is_never_computed_is_frozen_and_the_rest_learns():
    layers = VitLayers(vit(), layers=(0, 2), class_token=False)
    sum(x.sum() for x in layers(torch.randn(1, 3, 64, 64))).backward()
    for name, parameter in layers.named_parameters():
        unused = name.startswith(("network.blocks.3.", "network.norm."))
        assert parameter.requires_grad is not unused, name
        assert (parameter.grad is None) is unused, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (0, 4)}, r"segmenter.layers must be rising numbers of blocks from 0 to 3, got \(0, 4\)"),
        ({"layers": (2, 1)}, r"rising numbers of blocks"),
        ({"layers": (3,), "shrink_block": 9}, r"segmenter.shrink-block must lie in 0 to 3, got 9"),
    ],
)
def test_blocks_that_are_not_there_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VitLayers(vit(), class_token=False, **options)


def test_another_network_is_refused():
    swin = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
    with pytest.raises(ValueError, match="need a plain ViT of timm's, got a SwinTransformer"):
        VitLayers(swin, layers=(0,), class_token=False)
