"""`backbones/main.py clusters`: images as networks expect them, masks as asked for, and the file that is written."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from backbones.app import main
from backbones.commands.drawing import random_layout, read_photograph
from backbones.sec.clusters import load_network, normalised


@pytest.fixture
def photograph(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(80, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photograph.png")
    return tmp_path / "photograph.png"


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
    ("argv", "message"),
    [
        (["nothing.jpg"], "nothing.jpg: No such file or directory; check its name"),
        (["{folder}/text.jpg"], "text.jpg: expected a photograph that Pillow reads"),
        (["{photograph}", "--swin", "vit_tiny_patch16_224"], "vit_tiny_patch16_224 has no windows to group"),
        (["{photograph}", "--backbone", "nothing"], "timm has no architecture 'nothing'"),
        (["{photograph}", "--out", "{folder}"], "is a folder; name a file, such as"),
        (["{photograph}", "--out", "no/where.png"], "--out no/where.png: the folder no is not there; make it first"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_one(monkeypatch, capsys, photograph, argv, message):
    (photograph.parent / "text.jpg").write_text("no image")
    argv = [word.format(photograph=photograph, folder=photograph.parent) for word in argv]
    monkeypatch.setattr(sys, "argv", ["backbones/main.py", "clusters", *argv, "--img-size", "64", "64"])
    with pytest.raises(SystemExit) as stop:
        main()
    error = capsys.readouterr().err
    assert stop.value.code == 1
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_command_writes_a_picture_of_a_handed_off_or_random_network(monkeypatch, photograph, tmp_path):
    argv = [photograph, "--img-size", "128", "96", "--out", tmp_path / "clusters.png", "--mask-ratio", "0.5"]
    monkeypatch.setattr(sys, "argv", ["backbones/main.py", "clusters", *map(str, argv)])
    main()
    with Image.open(tmp_path / "clusters.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[0] > 800
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000


def test_command_says_the_file_that_it_wrote(monkeypatch, capsys, photograph, tmp_path):
    argv = [photograph, "--img-size", "64", "64", "--out", tmp_path / "picture"]
    monkeypatch.setattr(sys, "argv", ["backbones/main.py", "clusters", *map(str, argv)])
    main()
    assert f"wrote {tmp_path / 'picture.png'}\n" in capsys.readouterr().out
    assert (tmp_path / "picture.png").is_file()
