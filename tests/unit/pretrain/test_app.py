"""The program's words: recipes that parse, bad input on one line with exit code 1, status, report."""

import sys
from pathlib import Path

import pytest

from engine.recipe import dump, parse
from pretrain.app import main
from pretrain.config import PretrainConfig

ROOT = Path(__file__).resolve().parents[3]
OVERLAYS = [
    ROOT / "pretrain/recipes/single_gpu.yaml",
    *sorted((ROOT / "pretrain" / "recipes" / "sweeps").rglob("*.yaml")),
]
RECIPES = sorted({*(ROOT / "pretrain" / "recipes").rglob("*.yaml")} - {*OVERLAYS})
RECIPES += [ROOT / "examples/demo/pretrain.yaml", ROOT / "benchmarks/drills/resume.yaml"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses_and_round_trips(path, tmp_path):
    config = parse(PretrainConfig, ["--recipe", str(path), "--data.shards", "x"])
    (tmp_path / "again.yaml").write_text(dump(config))
    assert parse(PretrainConfig, ["--recipe", str(tmp_path / "again.yaml")]) == config


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_every_overlay_changes_a_recipe(path):
    base = ["--recipe", str(ROOT / "pretrain/recipes/swin_base.yaml"), "--data.shards", "x"]
    parse(PretrainConfig, [*base, "--recipe", str(path)])


def run(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pretrain/main.py", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    shown = capsys.readouterr().err
    return stop.value.code, shown


def recipe(path, config):
    path.write_text(dump(config))
    return ["--recipe", path]


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"data": {"shards": ["/nowhere/shards"]}}, ("/nowhere/shards", "manifest")),
        ({"backbone": {"img_size": (64, 80)}}, ("backbone.img-size 64x80", "32x32")),
        ({"backbone": {"name": "swin_tiny_patch4_window7_999"}}, ("swin_tiny_patch4_window7_999", "no architecture")),
    ],
)
def test_bad_input_is_one_line_and_exit_code_one(sections, words, micro, tmp_path, monkeypatch, capsys):
    code, shown = run(recipe(tmp_path / "bad.yaml", micro(**sections)), monkeypatch, capsys)
    assert code == 1
    errors = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert all(word in errors[0] for word in words)


def test_an_unknown_recipe_key_is_refused_with_a_suggestion(tmp_path, monkeypatch, capsys):
    (tmp_path / "typo.yaml").write_text("mim:\n  mask_rato: 0.5\n")
    monkeypatch.setattr(sys, "argv", ["pretrain/main.py", "--recipe", str(tmp_path / "typo.yaml")])
    with pytest.raises(SystemExit, match=r"unknown key 'mim\.mask_rato'; did you mean 'mim\.mask_ratio'\?"):
        main()


def test_a_mask_ratio_that_leaves_nothing_is_refused(monkeypatch, capsys):
    code, shown = run(["--data.shards", "x", "--mim.mask-ratio", "1.0"], monkeypatch, capsys)
    assert code
    assert "mim.mask-ratio must lie in [0, 1)" in " ".join(shown.split())


def test_status_and_report_name_a_missing_run(monkeypatch, capsys):
    for command in ("status", "report"):
        code, shown = run([command, "/nowhere"], monkeypatch, capsys)
        assert code == 1
        assert shown == f"error: pretrain/main.py {command} takes one run folder that exists, got /nowhere\n"


def test_status_shows_step_and_last_checkpoint(micro, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pretrain/main.py", *map(str, recipe(tmp_path / "r.yaml", micro()))])
    main()
    monkeypatch.setattr(sys, "argv", ["pretrain/main.py", "status", str(tmp_path / "run")])
    main()
    shown = capsys.readouterr().out
    assert "step" in shown
    assert "6" in shown


def test_process_counts_that_divide_are_listed():
    from engine.config import micro_batches_of

    with pytest.raises(ValueError, match="process counts that work: 1, 2, 4, 8, 16, 32"):
        micro_batches_of(0, world_size=5, batch_size=2048, micro_batch_size=64)
    assert [micro_batches_of(r, world_size=2, batch_size=8, micro_batch_size=2) for r in (0, 1)] == [
        range(2),
        range(2, 4),
    ]
