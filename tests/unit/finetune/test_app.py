"""The program's words, and its one line where a user has to act."""

import sys

import pytest

from finetune.app import main, with_own_recipe, with_shards
from finetune.classification.task import train


def test_measuring_only_needs_no_training_shards():
    words = ["--eval-only", "runs/x", "--val-shards", "val"]
    assert with_shards(words) == [*words, "--data.shards", "val"]
    assert with_shards(["--eval_only=runs/x", "--val_shards=val"])[-2:] == ["--data.shards", "val"]
    assert with_shards([*words, "--data.shards", "train"]) == [*words, "--data.shards", "train"]
    assert with_shards(["--val-shards", "val"]) == ["--val-shards", "val"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--data.shards", "missing", "--val-shards", "missing", "--backbone.name", "resnet18"],
            "missing is no folder",
        ),
        (["--data.shards", "x", "--val-shards", "x"], "nothing to start from"),
        (["results", "missing"], "results takes one run folder that exists, got missing"),
        (["status"], "status takes one run folder that exists, got nothing"),
    ],
)
def test_errors_are_one_line_and_exit_1(monkeypatch, capsys, words, said):
    monkeypatch.setattr(sys, "argv", ["finetune/main.py", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    error = capsys.readouterr().err
    assert stop.value.code == 1
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


def test_results_are_shown_again(monkeypatch, capsys, micro, tmp_path):
    train(micro(run={"folder": tmp_path / "run"}, optimizer={"steps": 1, "warmup_steps": 0, "ema_decay": None}))
    monkeypatch.setattr(sys, "argv", ["finetune/main.py", "results", str(tmp_path / "run")])
    main()
    shown = capsys.readouterr().out
    assert "last raw" in shown
    assert "best raw" in shown


def test_a_run_is_measured_with_its_own_recipe_unless_the_command_line_says_otherwise(tmp_path):
    words = ["--eval-only", str(tmp_path), "--data.workers", "0"]
    assert with_own_recipe(words) == words
    (tmp_path / "config.yaml").write_text("mim: {}\n")  # a pretraining run, which is refused later, with a reason
    assert with_own_recipe(words) == words
    (tmp_path / "config.yaml").write_text("val_shards: val\n")
    own = ["--recipe", str(tmp_path / "config.yaml"), "--run.folder", str(tmp_path)]  # also where the run was moved
    assert with_own_recipe(words) == [*own, *words]
    assert with_own_recipe(words[2:]) == words[2:]
    checkpoint = tmp_path / "checkpoints" / "step-000000001"
    checkpoint.mkdir(parents=True)
    words = ["--eval-only", str(checkpoint)]
    assert with_own_recipe(words) == [*own, *words]
