"""GreenMIM's Twins and SimMIM's ViT compute under timm's names what they computed under their own."""

import pytest
import timm
import torch
from timm.models.beit import Beit

from backbones.weights.handoff import read_backbone, read_state, skeleton
from backbones.weights.importing import import_backbone
from backbones.weights.key_names import to_timm
from backbones.weights.pretraining_layouts import infer_beit, infer_twins, is_beit, is_twins
from engine.errors import UserError

TWINS = {
    "img_size": (64, 64),
    "embed_dims": (16, 24, 32, 48),
    "num_heads": (1, 2, 2, 4),
    "depths": (2, 2, 2, 2),
    "wss": (2, 2, 2, 1),
}
BEIT = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "use_abs_pos_emb": False}
STRIDED = ("attn.sr.weight", "patch_embeds.1.proj.weight", "patch_embeds.2.proj.weight", "patch_embeds.3.proj.weight")


def greenmim_twins(state, *, nested):
    """A Twins' weights as GreenMIM's code has them: sparse kernels, and no residual in the positional convolution."""
    official = {}
    for name, value in state.items():
        changed = value.clone()
        if name.endswith(STRIDED):
            changed = value.permute(0, 2, 3, 1).contiguous()
            name = name.replace(".weight", ".conv.weight") if nested else name
        if name.startswith("pos_block.") and value.ndim == 4:
            changed[:, 0, 1, 1] += 1  # conv(x) alone is what conv(x) + x was
        official[f"encoder.{name}"] = changed
    return official | {"mask_token": torch.zeros(1, 1, 8), "decoder_pred.weight": torch.zeros(4, 8)}


@pytest.mark.parametrize("nested", [False, True])
def test_twins_of_greenmim_gets_dense_kernels_and_its_residual(nested):
    torch.manual_seed(0)
    state = timm.create_model("twins_svt_small", num_classes=0, **TWINS).state_dict()
    translated = to_timm(greenmim_twins(state, nested=nested))
    assert translated.naming == "greenmim-twins"
    assert translated.state.keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(translated.state[name], value)


def test_ordinary_twins_stay_as_they_are():
    state = timm.create_model("twins_svt_small", num_classes=0, **TWINS).state_dict()
    translated = to_timm({f"encoder.{name}": value for name, value in state.items()})
    assert translated.naming == "timm"
    assert all(torch.equal(translated.state[name], value) for name, value in state.items())


@pytest.mark.parametrize("name", ["twins_svt_small", "twins_svt_base", "twins_svt_large"])
def test_published_twins_are_recognised(name):
    state = skeleton(name, num_classes=0).state_dict()
    assert is_twins(state)
    assert infer_twins(state) == name


def test_vit_of_simmim_becomes_a_beit_that_computes_the_same(tmp_path):
    torch.manual_seed(0)
    shared = Beit(**BEIT, num_classes=0, init_values=0.1, use_shared_rel_pos_bias=True, use_fc_norm=False).eval()
    for parameter in shared.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    official = {f"encoder.{name}": value for name, value in shared.state_dict().items()}
    official |= {"encoder.mask_token": torch.zeros(1, 1, 32), "decoder.0.weight": torch.zeros(4, 32, 1, 1)}
    translated = to_timm(official)
    own = Beit(**BEIT, num_classes=0, init_values=0.1, use_rel_pos_bias=True).eval()
    own.load_state_dict(translated.state)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(shared.norm(own.forward_features(images)), shared.forward_features(images))
        assert torch.equal(own.fc_norm.weight, shared.norm.weight)


def test_published_beit_is_recognised_with_its_size():
    state = skeleton("beit_base_patch16_224", num_classes=0, img_size=192).state_dict()
    assert is_beit(state)
    assert infer_beit(state) == ("beit_base_patch16_224", {"img_size": 192})


def test_vit_of_simmim_is_imported_also_at_another_size(tmp_path):
    beit = skeleton("beit_base_patch16_224", num_classes=0, depth=1, embed_dim=24, num_heads=2)
    state = {name: torch.zeros(value.shape) for name, value in beit.state_dict().items()}
    table = state.pop("blocks.0.attn.relative_position_bias_table")
    state["rel_pos_bias.relative_position_bias_table"] = table
    state["norm.weight"], state["norm.bias"] = state.pop("fc_norm.weight"), state.pop("fc_norm.bias")
    torch.save({"model": {f"encoder.{name}": value for name, value in state.items()}}, tmp_path / "simmim.pth")
    sizes = {"depth": 1, "embed_dim": 24, "num_heads": 2, "img_size": 256}
    name = "beit_base_patch16_224"
    imported = import_backbone(tmp_path / "simmim.pth", tmp_path / "b", architecture=name, sizes=sizes)
    assert [str(change).split(" ", 1)[1] for change in imported.resized] == ["14x14 -> 16x16"]
    assert len(read_state(tmp_path / "b")["blocks.0.attn.relative_position_bias_table"]) == 31**2 + 3
    assert read_backbone(tmp_path / "b").provenance["layout"] == "simmim-vit"


def test_recomputed_weights_that_do_not_fit_are_refused_whole(tmp_path):
    state = timm.create_model("twins_svt_small", num_classes=0, **TWINS).state_dict()
    torch.save({"model": greenmim_twins(state, nested=False)}, tmp_path / "twins.pth")
    with pytest.raises(UserError, match=r"do not fit twins_svt_small: .*; give the right --architecture$"):
        import_backbone(tmp_path / "twins.pth", tmp_path / "b", architecture="twins_svt_small")
