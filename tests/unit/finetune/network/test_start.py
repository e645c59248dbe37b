"""Networks start from random weights or from a folder, which then says what they are."""

from dataclasses import replace

import pytest
import torch
from timm.models.swin_transformer import SwinTransformerBlock

from backbones.ops.exact_windows import ExactSwinBlock
from backbones.weights.handoff import write_backbone
from finetune.config import StartConfig
from finetune.network.start import build_network, resolve_start
from finetune.network.weights import start_from

NAME = "swin_tiny_patch4_window7_224"
ARGS = {"img_size": (64, 64), "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)}


@pytest.fixture
def handed_off(tmp_path):
    """Return a function that writes a backbone folder, with a classifier if asked."""

    def write(num_classes=0):
        scratch = resolve_start(
            StartConfig(name=NAME, img_size=(64, 64), window=4, embed_dim=16, depths=(1, 1), num_heads=(1, 2))
        )
        state = build_network(scratch, num_classes=num_classes, seed=7).state_dict()
        write_backbone(
            tmp_path / "run" / "backbone",
            architecture=NAME,
            model_args=ARGS,
            state=state,
            mean=(0.1, 0.2, 0.3),
            std=(0.4, 0.5, 0.6),
            provenance={},
            num_classes=num_classes,
        )
        return tmp_path / "run" / "backbone", state

    return write


def test_architecture_size_and_statistics_come_from_the_folder(handed_off):
    folder, state = handed_off()
    start = resolve_start(StartConfig(init=folder))
    assert (start.architecture, start.img_size) == (NAME, (64, 64))
    assert (start.mean, start.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    built = build_network(start, num_classes=5, drop_path=0.2).state_dict()
    assert built["head.fc.weight"].shape == (5, 32)
    assert all(torch.equal(built[name], value) for name, value in state.items() if not name.startswith("head."))


def test_options_override_the_folders_statistics(handed_off):
    start = resolve_start(StartConfig(init=handed_off()[0], mean=(0.5, 0.5, 0.5)))
    assert (start.mean, start.std) == ((0.5, 0.5, 0.5), (0.4, 0.5, 0.6))


@pytest.mark.filterwarnings("ignore:torch.searchsorted")  # from timm resizing bias tables
def test_another_size_and_window_resize_the_tables(handed_off):
    start = resolve_start(StartConfig(init=handed_off()[0], img_size=(96, 128), window=8))
    network = build_network(start, num_classes=3)
    assert network.layers[0].blocks[0].attn.relative_position_bias_table.shape == (15 * 15, 1)
    assert network(torch.zeros(1, 3, 96, 128)).shape == (1, 3)


def test_a_classifier_for_as_many_classes_is_kept_and_another_is_new(handed_off):
    folder, state = handed_off(num_classes=5)
    start = resolve_start(StartConfig(init=folder))
    assert torch.equal(build_network(start, num_classes=5).state_dict()["head.fc.weight"], state["head.fc.weight"])
    assert build_network(start, num_classes=4).state_dict()["head.fc.weight"].shape == (4, 32)


def test_the_new_classifier_depends_on_the_seed_alone(handed_off):
    start = resolve_start(StartConfig(init=handed_off()[0]))
    one, again, other = (build_network(start, num_classes=5, seed=seed).head.fc.weight for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_weights_of_another_architecture_are_refused_with_both_names(handed_off):
    folder, _ = handed_off()
    with pytest.raises(ValueError, match=f"holds a {NAME}, but backbone.name asks for swin_base_patch4_window7_224"):
        resolve_start(StartConfig(init=folder, name="swin_base_patch4_window7_224"))
    with pytest.raises(ValueError, match=r"with embed_dim 16, but backbone.embed-dim asks for 32"):
        resolve_start(StartConfig(init=folder, embed_dim=32))


def test_a_run_folder_is_refused_with_the_folder_that_is_meant(handed_off):
    folder, _ = handed_off()
    with pytest.raises(ValueError, match=r"run is a run folder; did you mean .*run/backbone\?"):
        resolve_start(StartConfig(init=folder.parent))


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a backbone folder"):
        resolve_start(StartConfig(init=tmp_path))


def test_truncated_weights_are_refused(handed_off):
    folder, _ = handed_off()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model.safetensors"):
        build_network(resolve_start(StartConfig(init=folder)), num_classes=5)


def test_nothing_to_start_from_and_an_unknown_name_are_refused():
    with pytest.raises(ValueError, match=r"--backbone.init, or --backbone.name"):
        resolve_start(StartConfig())
    with pytest.raises(ValueError, match="no architecture 'swin_bse'"):
        resolve_start(StartConfig(name="swin_bse"))


def test_windows_are_exact_or_timms_also_from_a_folder_and_from_a_checkpoint(handed_off):
    sizes = {"img_size": (160, 160), "window": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)}
    for config in (StartConfig(name=NAME, **sizes), StartConfig(init=handed_off()[0])):
        for windows, kind in (("exact", ExactSwinBlock), ("timm", SwinTransformerBlock)):
            start = resolve_start(replace(config, windows=windows))
            assert type(build_network(start, num_classes=2).layers[0].blocks[0]) is kind
    metadata = {"architecture": NAME, "model_args": ARGS, "img_size": [64, 64], "mean": [0] * 3, "std": [1] * 3}
    assert start_from(metadata).exact_windows
    assert not start_from({**metadata, "windows": "timm"}).exact_windows
