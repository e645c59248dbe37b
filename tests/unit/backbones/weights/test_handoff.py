import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from backbones.ops.exact_windows import use_exact_windows
from backbones.weights.handoff import check_replaceable, load_backbone, read_backbone, read_state, write_backbone

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
SMALL_SWIN = {
    "img_size": (128, 128),
    "window_size": 4,
    "embed_dim": 32,
    "depths": (2, 2, 2, 2),
    "num_heads": (1, 2, 4, 8),
}
SMALL_VIT = {"img_size": (64, 64), "embed_dim": 32, "depth": 4, "num_heads": 2}
MODELS = {
    "swin": ("swin_tiny_patch4_window7_224", SMALL_SWIN),
    "swin_v2": ("swinv2_tiny_window8_256", SMALL_SWIN),
    "vit": ("vit_small_patch16_224", SMALL_VIT),
    "twins": (
        "twins_svt_small",
        {
            "img_size": (64, 96),
            "embed_dims": (16, 32, 64, 128),
            "num_heads": (1, 2, 4, 8),
            "depths": (2, 2, 2, 2),
            "wss": (4, 4, 2, 1),
        },
    ),
    "convnext": ("convnext_tiny", {"depths": (1, 1, 2, 1), "dims": (16, 32, 64, 128)}),
}


def make(kind):
    torch.manual_seed(0)
    architecture, model_args = MODELS[kind]
    return timm.create_model(architecture, num_classes=0, **model_args).eval()


def hand_off(folder, model, kind, **changes):
    architecture, model_args = MODELS[kind]
    provenance = {"step": 7, "commit": "abc"}
    given = {
        "architecture": architecture,
        "model_args": model_args,
        "state": model.state_dict(),
        "provenance": provenance,
    }
    write_backbone(folder, **{**given, "mean": MEAN, "std": STD, **changes})


FRESH = """
import torch, timm
assert not any(name.split(".")[0] in ("backbones", "engine") for name in sys.modules)
folders, out = sys.argv[1:-1], sys.argv[-1]
results = {}
for folder in folders:
    x = torch.load(folder + ".images.pt")
    with torch.no_grad():
        model = timm.create_model("local-dir:" + folder, pretrained=True).eval()
        cfg = timm.data.resolve_model_data_config(model)
        head = timm.create_model("local-dir:" + folder, pretrained=True, num_classes=10).eval()
        maps = timm.create_model("local-dir:" + folder, pretrained=True, features_only=True).eval()
        size = tuple(2 * side for side in x.shape[-2:])
        sized = {} if "convnext" in folder else {"img_size": size}
        large = timm.create_model("local-dir:" + folder, pretrained=True, **sized).eval()
        results[folder] = {
            "features": model.forward_features(x), "mean": cfg["mean"], "std": cfg["std"], "size": cfg["input_size"],
            "with_head": head.forward_features(x), "logits": head(x).shape, "maps": [m.shape for m in maps(x)],
            "large": large.forward_features(torch.nn.functional.interpolate(x, size=size)).shape,
        }
torch.save(results, out)
"""


@pytest.fixture(scope="module")
def fresh_process(tmp_path_factory):
    """What timm alone makes of the folders, in another process, elsewhere, without this project on its path."""
    base = tmp_path_factory.mktemp("handoff")
    for kind, (_, model_args) in MODELS.items():
        hand_off(base / kind, make(kind), kind)
        torch.save(torch.randn(2, 3, *model_args.get("img_size", (224, 224))), base / f"{kind}.images.pt")
    root = str(Path(__file__).parents[4])
    script = base / "fresh.py"
    script.write_text(f"import sys; sys.path[:] = [p for p in sys.path if p != {root!r}]\n" + FRESH)
    folders = [str(base / kind) for kind in MODELS]
    command = [sys.executable, "-P", str(script), *folders, str(base / "out.pt")]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = torch.load(base / "out.pt")
    return {kind: (found[str(base / kind)], torch.load(base / f"{kind}.images.pt")) for kind in MODELS}


@pytest.mark.parametrize("kind", MODELS)
def test_timm_alone_computes_the_same_features_bit_for_bit(fresh_process, kind):
    found, images = fresh_process[kind]
    with torch.no_grad():
        expected = make(kind).forward_features(images)
    assert torch.equal(found["features"], expected)
    assert torch.equal(found["with_head"], expected)


@pytest.mark.parametrize("kind", MODELS)
def test_timm_alone_adds_a_head_gives_maps_and_takes_other_sizes(fresh_process, kind):
    found, images = fresh_process[kind]
    assert found["logits"] == (2, 10)
    assert len(found["maps"]) >= 2
    assert found["large"][0] == 2
    assert (tuple(found["mean"]), tuple(found["std"])) == (MEAN, STD)
    assert tuple(found["size"]) == (3, *images.shape[-2:])


def test_folder_says_how_it_was_made(tmp_path):
    hand_off(tmp_path / "backbone", make("swin"), "swin")
    info = read_backbone(tmp_path / "backbone")
    assert info.provenance == {"step": 7, "commit": "abc"}
    assert (info.architecture, info.img_size, info.mean, info.std) == (MODELS["swin"][0], (128, 128), MEAN, STD)


def test_loading_keeps_every_bit_and_gives_exact_windows(tmp_path):
    model = make("swin")
    hand_off(tmp_path / "backbone", model, "swin")
    loaded = load_backbone(tmp_path / "backbone").eval()
    images = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        assert torch.equal(loaded.forward_features(images), use_exact_windows(model).forward_features(images))
    assert all(
        torch.equal(value, model.state_dict()[name]) for name, value in read_state(tmp_path / "backbone").items()
    )


def test_loading_at_another_size_resizes_tables(tmp_path):
    hand_off(tmp_path / "backbone", make("swin"), "swin")
    model = load_backbone(tmp_path / "backbone", img_size=(192, 192), window_size=6, num_classes=5)
    assert model.layers[0].blocks[0].attn.relative_position_bias_table.shape == (121, 1)
    assert model(torch.randn(1, 3, 192, 192)).shape == (1, 5)


@pytest.mark.parametrize("kind", MODELS)
def test_feature_maps_are_those_of_the_whole_model(tmp_path, kind):
    model = make(kind)
    hand_off(tmp_path / "backbone", model, kind)
    images = torch.randn(1, 3, *MODELS[kind][1].get("img_size", (224, 224)))
    with torch.no_grad():
        maps = load_backbone(tmp_path / "backbone", features_only=True).eval()(images)
        expected = model.forward_intermediates(images, intermediates_only=True)[-1]
    assert torch.equal(maps[-1], expected.permute(0, 2, 3, 1) if "swin" in kind else expected)


def test_folder_with_a_head_loads_with_it(tmp_path):
    architecture, model_args = MODELS["swin"]
    model = timm.create_model(architecture, num_classes=3, **model_args).eval()
    hand_off(tmp_path / "backbone", model, "swin", num_classes=3)
    images = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        assert torch.equal(load_backbone(tmp_path / "backbone").eval()(images), model(images))


def test_classifier_and_computed_buffers_are_left_out(tmp_path):
    architecture, model_args = MODELS["swin"]
    model = timm.create_model(architecture, num_classes=3, **model_args)
    hand_off(tmp_path / "backbone", model, "swin", state={**model.state_dict(), **dict(model.named_buffers())})
    assert set(read_state(tmp_path / "backbone")) == set(make("swin").state_dict())


def test_newer_folder_replaces_the_older_one(tmp_path):
    hand_off(tmp_path / "backbone", make("swin"), "swin", provenance={"step": 1})
    hand_off(tmp_path / "backbone", make("swin"), "swin", provenance={"step": 2})
    assert read_backbone(tmp_path / "backbone").provenance == {"step": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["backbone"]


def test_weights_that_do_not_fit_leave_the_older_folder(tmp_path):
    model = make("swin")
    hand_off(tmp_path / "backbone", model, "swin")
    state = dict(model.state_dict())
    state["extra"] = state.pop("norm.weight")
    state["norm.bias"] = torch.zeros(3)
    with pytest.raises(
        ValueError, match=r"missing: norm.weight; unexpected: extra; of another shape: norm.bias \(3,\)"
    ):
        hand_off(tmp_path / "backbone", model, "swin", state=state)
    assert torch.equal(read_state(tmp_path / "backbone")["norm.weight"], model.state_dict()["norm.weight"])


def test_loading_as_a_deeper_network_names_what_lacks(tmp_path):
    hand_off(tmp_path / "backbone", make("vit"), "vit")
    with pytest.raises(ValueError, match=r"as {.depth.: 5}: lacks blocks.4.attn.proj.bias.* and \d+ more"):
        load_backbone(tmp_path / "backbone", depth=5)


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing: expected a backbone folder with config.json and model.safetensors"):
        read_backbone(tmp_path / "nothing")
    hand_off(tmp_path / "cut", make("vit"), "vit")
    whole = (tmp_path / "cut" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model.safetensors: expected a whole safetensors file"):
        load_backbone(tmp_path / "cut")
    (tmp_path / "cut" / "config.json").write_text(json.dumps({"architecture": "x"}))
    with pytest.raises(ValueError, match=r"config.json: expected timm's config"):
        read_backbone(tmp_path / "cut")


def test_unknown_architecture_is_refused(tmp_path):
    with pytest.raises(ValueError, match="timm has no architecture 'swim'"):
        hand_off(tmp_path / "backbone", make("vit"), "vit", architecture="swim")


def test_crop_and_class_names_are_where_timm_reads_them(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(MODELS["swin"][0], num_classes=3, **SMALL_SWIN)
    names = ("ant", "bee", "cat")
    hand_off(tmp_path / "b", model, "swin", num_classes=3, crop_pct=0.8, label_names=names)
    cfg = timm.create_model(f"local-dir:{tmp_path / 'b'}", pretrained=True).pretrained_cfg
    assert (cfg["crop_pct"], tuple(cfg["label_names"])) == (0.8, names)


def test_only_a_backbone_is_replaced(tmp_path):
    check_replaceable(tmp_path / "absent")
    hand_off(tmp_path / "backbone", make("vit"), "vit")
    check_replaceable(tmp_path / "backbone")
    (tmp_path / "empty").mkdir()
    check_replaceable(tmp_path / "empty")
    others = tmp_path / "another"
    others.mkdir()
    (others / "config.json").write_text('{"architectures": ["Bert"]}')
    (others / "model.safetensors").write_bytes(b"theirs")
    for folder in (others, tmp_path):
        with pytest.raises(ValueError, match=r"would be lost"):
            check_replaceable(folder)


def test_what_is_no_backbone_is_moved_aside_and_a_link_is_followed(tmp_path, caplog):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "notes.txt").write_text("mine")
    (tmp_path / "backbone").symlink_to(tmp_path / "elsewhere")
    for _ in range(2):
        hand_off(tmp_path / "backbone", make("vit"), "vit")
    assert read_backbone(tmp_path / "backbone").provenance == {"step": 7, "commit": "abc"}
    assert (tmp_path / "elsewhere.before-1" / "notes.txt").read_text() == "mine"
    assert "kept as" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backbone", "elsewhere", "elsewhere.before-1"]


def test_files_have_the_permissions_that_new_files_get(tmp_path):
    before = os.umask(0o022)
    try:
        hand_off(tmp_path / "backbone", make("vit"), "vit")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "backbone").iterdir()} == {0o644}
