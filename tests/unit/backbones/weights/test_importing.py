import argparse

import pytest
import timm
import torch

from backbones.weights.exporting import export_weights
from backbones.weights.handoff import load_backbone, read_backbone, read_state, write_backbone
from backbones.weights.importing import import_backbone

SMALL = {"img_size": (128, 128), "window_size": 4, "embed_dim": 16, "depths": (2, 1, 2, 1), "num_heads": (1, 2, 2, 4)}
SWIN, SWIN_V2, VIT = "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "vit_small_patch16_224"
STAGE_ENDS = {f"layers.{stage + 1}.downsample": f"layers.{stage}.downsample" for stage in range(3)}


def small(architecture=SWIN, **changes):
    torch.manual_seed(1)
    return timm.create_model(architecture, **{"num_classes": 0, **SMALL, **changes}).eval()


def microsoft_names(model):
    """The network's weights as microsoft's own code names them, buffers included."""
    state = {}
    buffers = [(name, value) for name, value in model.named_buffers() if not name.endswith("k_bias")]  # timm's alone
    for name, value in [*model.state_dict().items(), *buffers]:
        start = ".".join(name.split(".")[:3])
        state[name.replace(start, STAGE_ENDS.get(start, start), 1).replace("head.fc.", "head.")] = value
    return state


def greenmim_file(path, model):
    state = {f"encoder.{name}": value for name, value in microsoft_names(model).items()}
    state |= {"mask_token": torch.zeros(1, 1, 8), "decoder_pos_embed": torch.zeros(1, 16, 8)}
    state |= {"decoder_pred.weight": torch.zeros(4, 8), "decoder_blocks.0.attn.qkv.weight": torch.zeros(24, 8)}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    args = argparse.Namespace(model="green_mim_swin_base", blr=1e-4)
    torch.save({"model": state, "optimizer": optimizer, "epoch": 799, "scaler": {}, "args": args}, path)


def test_greenmim_checkpoint_becomes_a_backbone(tmp_path):
    model = small()
    greenmim_file(tmp_path / "checkpoint-799.pth", model)
    found = import_backbone(tmp_path / "checkpoint-799.pth", tmp_path / "backbone")
    assert (found.missing, found.unexpected, found.resized) == ([], [], [])
    assert len(found.left_out["of pretraining only"]) == 4
    images = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        loaded = load_backbone(tmp_path / "backbone").eval()
        assert torch.equal(loaded.forward_features(images), model.forward_features(images))
    provenance = read_backbone(tmp_path / "backbone").provenance
    assert provenance["imported_from"]["file"] == "checkpoint-799.pth"
    assert provenance["layout"] == "microsoft"


def test_greenmim_checkpoint_of_2022_gets_its_merging_blocks_swapped(tmp_path):
    greenmim_file(tmp_path / "old.pth", small())
    import_backbone(tmp_path / "old.pth", tmp_path / "plain")
    import_backbone(tmp_path / "old.pth", tmp_path / "swapped", merge_order="official-2022")
    plain, swapped = read_state(tmp_path / "plain"), read_state(tmp_path / "swapped")
    changed = {name for name in plain if not torch.equal(plain[name], swapped[name])}
    assert changed == {f"layers.{stage}.downsample.reduction.weight" for stage in (1, 2, 3)}  # norms are still 1 and 0
    before, after = (state["layers.1.downsample.reduction.weight"].unflatten(1, (4, 16)) for state in (plain, swapped))
    assert torch.equal(after, before[:, [0, 2, 1, 3]])


def test_bare_extracted_encoder_and_classifier_file_of_microsoft_are_read(tmp_path):
    model = small(num_classes=10)
    torch.save({"model": microsoft_names(model)}, tmp_path / "swin.pth")
    found = import_backbone(tmp_path / "swin.pth", tmp_path / "backbone")
    assert found.left_out["the classifier"] == ["head.weight", "head.bias"]
    assert found.model_args["window_size"] == 4
    assert found.num_taken == len(small().state_dict())


def test_swin_v2_tells_its_window_by_its_buffers(tmp_path):
    model = small(SWIN_V2)
    torch.save({"model": microsoft_names(model)}, tmp_path / "v2.pth")
    found = import_backbone(tmp_path / "v2.pth", tmp_path / "backbone")
    assert (found.architecture, found.model_args["window_size"], found.model_args["img_size"]) == (
        SWIN_V2,
        4,
        (128, 128),
    )
    images = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        loaded = load_backbone(tmp_path / "backbone").eval()
        assert torch.equal(loaded.forward_features(images), model.forward_features(images))


def test_another_window_and_image_size_resize_every_table_and_say_so(tmp_path):
    greenmim_file(tmp_path / "a.pth", small())
    sizes = {"img_size": (224, 224), "window_size": 7}
    found = import_backbone(tmp_path / "a.pth", tmp_path / "backbone", sizes=sizes)
    assert len(found.resized) == 6
    assert str(found.resized[0]).endswith("4x4 -> 7x7")
    assert load_backbone(tmp_path / "backbone")(torch.randn(1, 3, 224, 224)).shape == (1, 128)


def test_timm_file_of_a_vit_at_another_size_is_read(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=12, img_size=64)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    found = import_backbone(
        tmp_path / "vit.pth", tmp_path / "backbone", architecture="vit_tiny_patch16_224", sizes={"img_size": (96, 96)}
    )
    assert [str(change) for change in found.resized] == ["pos_embed 4x4 -> 6x6"]


def test_weights_that_do_not_fit_are_refused_unless_partial(tmp_path):
    state = microsoft_names(small())
    del state["norm.weight"]
    state["extra.weight"] = torch.zeros(2)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(
        ValueError, match=r"odd.pth: .* 1 missing \(norm.weight\) and 1 unexpected \(extra.weight \(2,\)\)"
    ):
        import_backbone(tmp_path / "odd.pth", tmp_path / "backbone")
    assert not (tmp_path / "backbone").exists()
    found = import_backbone(tmp_path / "odd.pth", tmp_path / "backbone", partial=True)
    assert (found.missing, found.unexpected) == (["norm.weight"], ["extra.weight (2,)"])
    assert read_backbone(tmp_path / "backbone").provenance["random"] == ["norm.weight"]


def test_wrong_architecture_is_refused(tmp_path):
    greenmim_file(tmp_path / "a.pth", small())
    with pytest.raises(ValueError, match=r"a.pth: .* do not fit swin_base|has 1 heads, the model 4"):
        import_backbone(tmp_path / "a.pth", tmp_path / "backbone", architecture="swin_base_patch4_window7_224")


def test_unknown_names_ask_for_the_architecture(tmp_path):
    torch.save({"conv1.weight": torch.zeros(2)}, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"resnet.pth: cannot tell the architecture .* give --architecture"):
        import_backbone(tmp_path / "resnet.pth", tmp_path / "backbone")


@pytest.mark.parametrize("layout", ["timm", "microsoft"])
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("architecture", [SWIN, SWIN_V2])
def test_importing_what_was_exported_gives_every_bit_back(tmp_path, layout, ending, architecture):
    model = small(architecture)
    write_backbone(
        tmp_path / "a",
        architecture=architecture,
        model_args=SMALL,
        state=model.state_dict(),
        mean=(0, 0, 0),
        std=(1, 1, 1),
        provenance={},
    )
    out = tmp_path / f"weights{ending}"
    assert export_weights(tmp_path / "a", out, naming=layout) == len(model.state_dict())
    import_backbone(out, tmp_path / "b", architecture=architecture, sizes=SMALL)
    before, after = read_state(tmp_path / "a"), read_state(tmp_path / "b")
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_backbone_folder_is_imported_with_its_own_arguments(tmp_path):
    greenmim_file(tmp_path / "a.pth", small())
    import_backbone(tmp_path / "a.pth", tmp_path / "a", mean=(0.1, 0.2, 0.3))
    found = import_backbone(tmp_path / "a", tmp_path / "b", sizes={"window_size": 8})
    assert {change.after for change in found.resized} == {(8, 8)}
    assert read_backbone(tmp_path / "b").mean == (0.1, 0.2, 0.3)


def test_export_refuses_other_endings_and_layouts(tmp_path):
    torch.save(timm.create_model("vit_tiny_patch16_224", depth=1).state_dict(), tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=r"ends in .safetensors or .pth"):
        export_weights(tmp_path / "vit.pth", tmp_path / "out.bin", naming="timm")
    with pytest.raises(ValueError, match="exists for Swin and Swin V2 only"):
        export_weights(tmp_path / "vit.pth", tmp_path / "out.pth", naming="microsoft")


def test_weights_of_fewer_bits_become_fp32(tmp_path):
    model = small()
    state = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    torch.save(state, tmp_path / "half.pth")
    import_backbone(tmp_path / "half.pth", tmp_path / "backbone", sizes={"window_size": 3})
    stored = read_state(tmp_path / "backbone")
    assert {value.dtype for value in stored.values()} == {torch.float32}
    name = "layers.0.blocks.0.attn.qkv.weight"
    assert torch.equal(stored[name], state[name].float())


def test_size_that_the_file_does_not_say_is_said_to_be_assumed(tmp_path):
    torch.save(small().state_dict(), tmp_path / "swin.pth")
    assumed = import_backbone(tmp_path / "swin.pth", tmp_path / "a")
    told = import_backbone(tmp_path / "swin.pth", tmp_path / "b", sizes={"img_size": (256, 256)})
    again = import_backbone(tmp_path / "b", tmp_path / "c")
    assert (assumed.assumed_size, told.assumed_size, again.assumed_size) == ((128, 128), None, None)
    assert read_backbone(tmp_path / "a").provenance["img_size"] == "not known, assumed"
