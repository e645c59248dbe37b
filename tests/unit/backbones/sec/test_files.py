"""SecViT in and out of files.

A backbone folder loads after `import backbones`, and published checkpoints of both versions import.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from backbones.weights.handoff import load_backbone, read_backbone, write_backbone
from backbones.weights.importing import import_backbone
from backbones.weights.key_names import to_timm
from benchmarks.steps.plain_secvit import PlainSecViT
from tests.unit.backbones.sec.test_secvit import SMALL, images, small

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def hand_off(folder, model, *, name="secvit_tiny", **model_args):
    write_backbone(
        folder,
        architecture=name,
        model_args=model_args or {**SMALL, "img_size": (64, 96)},
        state=model.state_dict(),
        mean=MEAN,
        std=STD,
        provenance={},
    )


FRESH = """
import sys, timm, torch
folder, images, out = sys.argv[1:]
try:
    timm.create_model("local-dir:" + folder, pretrained=True)
except RuntimeError:
    pass
else:
    raise SystemExit("timm alone knows SecViT")
import backbones
x = torch.load(images)
with torch.no_grad():
    model = timm.create_model("local-dir:" + folder, pretrained=True).eval()
    maps = timm.create_model("local-dir:" + folder, pretrained=True, features_only=True).eval()
    head = timm.create_model("local-dir:" + folder, pretrained=True, num_classes=10).eval()
    torch.save([model.forward_features(x), maps(x)[-1], head.forward_features(x), head(x)], out)
"""


XFORMER = {"widths": (8, 8, 12, 16, 16), "stem_width": 4, "embed_dims": (12, 12, 16), "depths": (1, 1, 1), "qkv_dim": 8}
MODELS = {"secvit_tiny": SMALL, "sec_swin_tiny": SMALL, "sec_faster_vit_0": SMALL, "xformer": XFORMER}


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_loads_in_another_process_after_importing_backbones(tmp_path, name):
    sizes = {**MODELS[name], "img_size": (64, 96)}
    model = timm.create_model(name, num_classes=0, **sizes).eval()
    hand_off(tmp_path / "backbone", model, name=name, **sizes)
    x = images(64, 96).float()
    torch.save(x, tmp_path / "x.pt")
    command = [sys.executable, "-c", FRESH, *(str(tmp_path / name) for name in ("backbone", "x.pt", "out.pt"))]
    done = subprocess.run(command, cwd=Path(__file__).parents[4], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr + done.stdout
    *features, logits = torch.load(tmp_path / "out.pt")
    with torch.no_grad():
        expected = model.forward_features(x)
        maps = model.forward_intermediates(x, intermediates_only=True)
    whole, last, with_classes = features
    assert torch.equal(whole, expected)
    assert torch.equal(with_classes, expected)
    assert torch.equal(last, maps[-1])
    assert logits.shape == (2, 10)


def test_the_head_of_a_pretrained_folder_is_new_and_said_and_nothing_else_may_lack(tmp_path, caplog):
    model = small()
    hand_off(tmp_path / "backbone", model)
    with caplog.at_level("INFO"):
        fresh = load_backbone(tmp_path / "backbone", num_classes=5)
    assert "backbone: new, with random weights: head, norm, proj" in caplog.text
    assert torch.equal(fresh.layers[0].blocks[0].attn.qkv.weight, model.layers[0].blocks[0].attn.qkv.weight.float())
    assert fresh.proj.weight.shape == (1024, 128)
    with pytest.raises(ValueError, match=r"lacks layers\.2\.blocks\.2"):
        load_backbone(tmp_path / "backbone", depths=(2, 2, 3, 2))


@pytest.mark.parametrize("version", [1, 2])
def test_published_checkpoints_of_both_versions_import(tmp_path, version):
    torch.manual_seed(0)
    ours = timm.create_model("secvit_tiny", version=version)
    state = PlainSecViT(ours).state_dict()
    if version == 1:
        state = {n: v for n, v in state.items() if not n.startswith("proj") and "dwconv" not in n and "RoPE" not in n}
        state |= {f"norm.{name}": value for name, value in ours.norm.state_dict().items()}
        state["head.weight"] = torch.randn(1000, 512, 1, 1)
    torch.save({"model": state}, tmp_path / "secvit_t.pth")
    found = import_backbone(tmp_path / "secvit_t.pth", tmp_path / "backbone")
    assert (found.architecture, found.model_args) == ("secvit_tiny", {"version": version})
    assert (found.missing, found.unexpected) == ([], [])
    assert found.num_taken == len(load_backbone(tmp_path / "backbone").state_dict())
    assert {"norm.weight", "head.weight"} <= set(found.left_out["the classifier"])
    named = import_backbone(tmp_path / "secvit_t.pth", tmp_path / "named", architecture="secvit_tiny")
    assert named.model_args == {"version": version}
    loaded = load_backbone(tmp_path / "backbone").eval()
    assert read_backbone(tmp_path / "backbone").model_args == {"version": version}
    assert torch.equal(
        loaded.layers[1].blocks[0].attn.qkv.weight, state["layers.1.blocks.0.attn.qkv.weight"].flatten(1)
    )
    assert torch.equal(loaded.layers[1].downsample.reduction.weight, state["layers.0.downsample.reduction.weight"])


def test_sizes_that_were_never_published_are_named_and_scales_import_as_vectors(tmp_path):
    model = timm.create_model("secvit_base", depths=(1, 1, 1, 1), num_classes=0)
    state = PlainSecViT(model).state_dict()
    scale = state["layers.2.blocks.0.gamma_1"]
    scale.copy_(torch.rand(scale.shape))
    torch.save({"model": state}, tmp_path / "some.pth")
    translated = to_timm(state).state["layers.2.blocks.0.gamma_1"]
    assert translated.shape == model.layers[2].blocks[0].gamma_1.shape == (320,)
    assert torch.equal(translated, scale.flatten())
    with pytest.raises(
        ValueError, match=r"no published SecViT has 80 channels and depths \(1, 1, 1, 1\); give --archi"
    ):
        import_backbone(tmp_path / "some.pth", tmp_path / "backbone")
