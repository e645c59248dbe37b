"""The picture of clusters and groups: what it shows is what the networks compute."""

import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from backbones.app import main
from backbones.clusters import clusters_of, load_network, normalised
from backbones.pictures import random_layout, read_photograph
from backbones.sec_attention import similarity

NARROW = {"embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 4)}


@pytest.fixture
def photograph(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(80, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photograph.png")
    return tmp_path / "photograph.png"


@pytest.mark.parametrize("rope", [False, True])
def test_clusters_are_of_equal_size_and_those_that_the_attention_computes(rope, monkeypatch):
    torch.manual_seed(0)
    model = timm.create_model("secvit_tiny", num_classes=0, rope=rope, **NARROW)
    likeness = {}

    def spied(*args, **kwargs):
        found = similarity(*args, **kwargs)
        likeness[found.shape[-1]] = found[0]  # h n of the last layer with so many tokens
        return found

    monkeypatch.setattr("backbones.sec_attention.similarity", spied)
    found = clusters_of(model, torch.randn(1, 3, 224, 224))
    assert [clusters.number for clusters in found] == [32, 8, 2]
    for clusters in found:
        for head, cluster in enumerate(torch.from_numpy(clusters.cluster).flatten(1)):
            assert torch.equal(cluster.bincount(), torch.full((clusters.number,), 98))
            assert (cluster[likeness[len(cluster)][head].argsort(stable=True)].diff() >= 0).all()


def test_network_without_clusters_is_refused():
    model = timm.create_model("secvit_tiny", attention="window", **NARROW)
    with pytest.raises(
        ValueError, match="this network has no attention in clusters; choose a network such as secvit_tiny"
    ):
        clusters_of(model, torch.randn(1, 3, 224, 224))


def test_photograph_is_cut_to_size_and_normalised_as_the_network_expects(photograph):
    pixels = read_photograph(photograph, (64, 96))
    assert pixels.shape == (64, 96, 3)
    model = load_network("secvit_tiny", img_size=(64, 96), seed=0)
    x = normalised(pixels, model)
    back = x * torch.tensor(model.pretrained_cfg["std"]).view(3, 1, 1) + torch.tensor(
        model.pretrained_cfg["mean"]
    ).view(3, 1, 1)
    torch.testing.assert_close(
        back[0].permute(1, 2, 0) * 255, torch.from_numpy(pixels.copy()).float(), atol=1e-2, rtol=0
    )


def test_layout_hides_the_share_asked_for():
    layout = random_layout("swin_tiny_patch4_window7_224", img_size=(224, 448), mask_ratio=0.75, seed=3)
    assert len(layout.units) == round(98 * 0.25)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.jpg"], "nothing.jpg: expected a photograph that Pillow reads"),
        (["{photograph}", "--swin", "vit_tiny_patch16_224"], "vit_tiny_patch16_224 has no windows to group"),
        (["{photograph}", "--backbone", "nothing"], "timm has no architecture 'nothing'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_one(monkeypatch, capsys, photograph, words, message):
    words = [word.format(photograph=photograph) for word in words]
    monkeypatch.setattr(sys, "argv", ["backbones/main.py", "clusters", *words, "--img-size", "64", "64"])
    with pytest.raises(SystemExit) as stop:
        main()
    error = capsys.readouterr().err
    assert stop.value.code == 1
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_command_writes_a_picture_of_a_handed_off_or_random_network(monkeypatch, photograph, tmp_path):
    words = [photograph, "--img-size", "128", "96", "--out", tmp_path / "clusters.png", "--mask-ratio", "0.5"]
    monkeypatch.setattr(sys, "argv", ["backbones/main.py", "clusters", *map(str, words)])
    main()
    with Image.open(tmp_path / "clusters.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[0] > 800
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000
