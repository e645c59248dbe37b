import sys

import pytest
import timm
import torch

from backbones.app import main
from backbones.weights.handoff import read_backbone


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["backbones/main.py", *map(str, argv)])
        monkeypatch.setenv("COLUMNS", "160")
        main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def swin_file(tmp_path):
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=2, embed_dim=8, num_heads=(1, 1, 2, 2)
    )
    torch.save({"model": model.state_dict()}, tmp_path / "swin.pth")
    return tmp_path / "swin.pth"


def test_import_show_and_export_work_on_a_file(run, swin_file, tmp_path):
    said = run("import", swin_file, tmp_path / "backbone")
    assert "left out: the classifier" in said
    assert f'timm.create_model("local-dir:{tmp_path / "backbone"}", pretrained=True)' in said
    assert read_backbone(tmp_path / "backbone").img_size == (64, 64)
    assert "imported_from" in run("show", tmp_path / "backbone")
    assert "microsoft" in run("export", tmp_path / "backbone", tmp_path / "out.pth", "--layout", "microsoft")
    assert "microsoft" in run("show", tmp_path / "out.pth")


def test_show_describes_an_architecture_and_how_it_is_pretrained(run):
    said = run("show", "swin_tiny_patch4_window7_224")
    assert "28.3 M parameters (28,288,354), 4.49 G multiply-accumulates at 224 px (4.35 G without" in said
    assert "96 channels at stride 4, 192 channels at stride 8" in said
    assert "visible or dense" in said
    assert "56x56" in said


def test_show_counts_at_the_image_size_asked_for(run):
    assert "at 256x128 px" in run("show", "xformer", "--img-size", "256", "128")
    assert "24x16" in run("show", "vit_tiny_patch16_224", "--img-size", "384", "256")


def test_show_says_why_a_network_cannot_be_pretrained(run):
    assert "ResNet cannot run on visible tokens only; these can: Swin" in run("show", "resnet18")
    said = run("show", "secvit_tiny", "--img-size", "100", "100")
    assert "img-size 100x100 is no multiple of the mask unit of 32x32 px; nearest that fit: height 96 or 128" in said
    assert "visible tokens" not in said


@pytest.mark.parametrize(
    ("argv", "stages"),
    [
        (("convnext_tiny", "--img-size", "224", "256"), ["56x64", "28x32", "14x16", "7x8"]),
        (("sec_faster_vit_0",), ["56x56", "28x28", "14x14", "7x7"]),
        (("xformer",), ["128x128", "64x64", "32x32", "16x16", "8x8"]),
        (("vit_tiny_patch16_224",), ["14x14"]),
    ],
)
def test_show_numbers_the_stages_and_gives_their_grids(run, argv, stages):
    rows = [line.replace("│", " ").split() for line in run("show", *argv).splitlines() if line.startswith("│")]
    assert [row[:2] for row in rows] == [[str(number), grid] for number, grid in enumerate(stages, start=1)]


def test_list_names_what_matches_and_can_be_pretrained(run):
    said = run("list", "*tiny_patch[14]*_224")
    assert "swin_tiny_patch4_window7_224" in said
    assert "vit_tiny_patch16_224" in said
    assert "deit_tiny_distilled" not in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["show", "nothing.pth"], "timm has no architecture 'nothing.pth'"),
        (
            ["show", "secvit_tiny", "--img-size", "0", "0"],
            "expected an image size of two positive numbers, got 0 and 0",
        ),
        (["show", "vit_tiny_patch16_224", "--img-size", "8", "8"], "cannot take images of 8x8 px: "),
        (["list", "nothing*"], "none of timm's names matches 'nothing*'"),
        (["import", "nothing.pth", "out"], "nothing.pth: no such file"),
        (["export", "nothing", "out.pth"], "nothing: no such file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_one(monkeypatch, capsys, argv, message):
    monkeypatch.setattr(sys, "argv", ["backbones/main.py", *argv])
    with pytest.raises(SystemExit) as stop:
        main()
    error = capsys.readouterr().err
    assert stop.value.code == 1
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
