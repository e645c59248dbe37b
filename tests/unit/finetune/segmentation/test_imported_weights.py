"""A ViT's weights in a local file, as of AugReg, become a segmenter's backbone: statistics, positions, tokens."""

import timm
import torch
from safetensors.torch import save_file

from backbones.weights.importing import import_backbone
from finetune.config import StartConfig
from finetune.network.start import resolve_start
from finetune.segmentation.config import SegmenterConfig
from finetune.segmentation.model import build_model


def test_local_vit_weights_bring_their_statistics_and_positions_for_any_crop(micro, tmp_path):
    model = timm.create_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k", pretrained=False, img_size=64)
    save_file(model.state_dict(), tmp_path / "augreg.safetensors")
    import_backbone(
        tmp_path / "augreg.safetensors",
        tmp_path / "backbone",
        architecture="vit_tiny_patch16_224",
        sizes={"img_size": (64, 64)},
    )
    config = micro(
        backbone=StartConfig(init=tmp_path / "backbone", drop_path=0.0),
        segmenter=SegmenterConfig(layers=(3, 11)),
        augment={"crop": (48, 80)},
    )
    segmenter = build_model(config, start=resolve_start(config.backbone), num_classes=3).eval()
    assert segmenter.pixels.mean.flatten().tolist() == [127.5] * 3
    assert segmenter.pixels.std.flatten().tolist() == [127.5] * 3
    images = torch.randn(1, 3, 48, 80)
    taken = timm.create_model("vit_tiny_patch16_224", img_size=64, dynamic_img_size=True, num_classes=0).eval()
    taken.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("head.")})
    expected = taken.patch_embed(images)
    with torch.no_grad():
        tokens = taken._pos_embed(expected)[:, 1:]
        for block in taken.blocks[:4]:
            tokens = block(tokens)
        found = segmenter.features(images)[0]
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), tokens)
