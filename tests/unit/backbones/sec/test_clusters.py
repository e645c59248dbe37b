"""The drawing of clusters and groups: what it shows is what the networks compute."""

import sys

import numpy as np
import pytest
import timm
import torch
from matplotlib.figure import Figure
from PIL import Image

from backbones.app import main
from backbones.commands.drawing import draw, random_layout, read_photograph
from backbones.sec.attention import similarity
from backbones.sec.clusters import clusters_of, load_network, normalised

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

    monkeypatch.setattr("backbones.sec.attention.similarity", spied)
    found = clusters_of(model, torch.randn(1, 3, 224, 224))
    assert [clusters.number for clusters in found] == [32, 8, 2]
    for clusters in found:
        for head, cluster in enumerate(torch.from_numpy(clusters.cluster).flatten(1)):
            assert torch.equal(cluster.bincount(), torch.full((clusters.number,), 98))
            assert (cluster[likeness[len(cluster)][head].argsort(stable=True)].diff() >= 0).all()


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("sec_faster_vit_0", {"stem_dim": 8, "clusters": (1, 1, 4, 2)}, [(3, 4), (4, 2)]),
        ("secvit_tiny", {"clusters": (1, 8, 2, 1)}, [(2, 8), (3, 2)]),
        ("secvit_tiny", {"clusters": (1, 1, 200, 200)}, [(3, 16), (4, 4)]),  # no more than there are tokens
    ],
)
def test_clusters_know_their_stage_and_are_drawn_under_its_number(name, options, expected, monkeypatch, tmp_path):
    model = timm.create_model(name, num_classes=0, **{**NARROW, "num_heads": (1, 2, 2, 4), **options})
    found = clusters_of(model, torch.randn(1, 3, 64, 64))
    assert [(clusters.stage, clusters.number) for clusters in found] == expected
    assert all(clusters.cluster.max() == clusters.number - 1 for clusters in found)
    titles = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: titles.extend(a.get_title() for a in self.axes))
    layout = random_layout("swin_tiny_patch4_window7_224", img_size=(64, 64), mask_ratio=0.5, seed=0)
    draw(np.zeros((64, 64, 3), np.uint8), found, layout, title="", path=tmp_path / "picture.png")
    for column, (stage, number) in enumerate(expected, start=1):
        assert titles[column].startswith(f"stage {stage}, head 1: {number} clusters")


@pytest.mark.parametrize("sides", [(64, 64), (66, 64)])
def test_model_is_left_as_it_was_even_where_its_forward_fails(sides):
    model = timm.create_model("secvit_tiny", stem="patch", **NARROW).train()
    if sides == (64, 64):
        clusters_of(model, torch.randn(1, 3, *sides))
    else:
        with pytest.raises(ValueError, match="takes images of multiples of 4 pixels"):
            clusters_of(model, torch.randn(1, 3, *sides))
    assert model.training
    assert model.layers[0].training
    assert not any(module._forward_pre_hooks for module in model.modules())


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


def test_photograph_is_turned_upright(tmp_path):
    upright = Image.fromarray(np.random.default_rng(0).integers(256, size=(96, 64, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "lying.png", exif=exif)
    assert np.array_equal(read_photograph(tmp_path / "lying.png", (96, 64)), np.asarray(upright))


def test_layout_hides_the_share_asked_for():
    layout = random_layout("swin_tiny_patch4_window7_224", img_size=(224, 448), mask_ratio=0.75, seed=3)
    assert len(layout.units) == round(98 * 0.25)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.jpg"], "nothing.jpg: expected a photograph that Pillow reads"),
        (["{photograph}", "--swin", "vit_tiny_patch16_224"], "vit_tiny_patch16_224 has no windows to group"),
        (["{photograph}", "--backbone", "nothing"], "timm has no architecture 'nothing'"),
        (["{photograph}", "--out", "{folder}"], "is a folder; name a file, such as"),
        (["{photograph}", "--out", "no/where.png"], "--out no/where.png: the folder no is not there; make it first"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_one(monkeypatch, capsys, photograph, words, message):
    words = [word.format(photograph=photograph, folder=photograph.parent) for word in words]
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


def test_command_says_the_file_that_it_wrote(monkeypatch, capsys, photograph, tmp_path):
    words = [photograph, "--img-size", "64", "64", "--out", tmp_path / "picture"]
    monkeypatch.setattr(sys, "argv", ["backbones/main.py", "clusters", *map(str, words)])
    main()
    assert f"wrote {tmp_path / 'picture.png'}\n" in capsys.readouterr().out
    assert (tmp_path / "picture.png").is_file()
