"""The program's commands, and its one line where a user has to act."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engine.recipe import dump
from finetune.app import COMMANDS, main
from finetune.commands.evaluate import evaluation_config, trained_recipe
from finetune.commands.options import EvaluationRequest, parse_evaluation, parse_training
from finetune.train import train

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--data.shards", "missing", "--val-shards", "missing", "--backbone.name", "resnet18"],
            "missing is no folder",
        ),
        (["--data.shards", "x", "--val-shards", "x"], "nothing to start from"),
        (["results", "missing"], "results takes one run folder that exists, got missing"),
        (["--eval-only"], "--eval-only takes what to measure, got nothing"),
        (["evaluat"], "there is no command 'evaluat'; did you mean 'evaluate'?"),
    ],
)
def test_errors_are_one_line_and_exit_1(monkeypatch, capsys, argv, message):
    monkeypatch.setattr(sys, "argv", ["finetune/main.py", *argv])
    with pytest.raises(SystemExit) as stop:
        main()
    error = capsys.readouterr().err
    assert stop.value.code == 1
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_results_are_shown_again(monkeypatch, capsys, micro, tmp_path):
    train(micro(run={"folder": tmp_path / "run"}, optimizer={"steps": 1, "warmup_steps": 0, "ema_decay": None}))
    monkeypatch.setattr(sys, "argv", ["finetune/main.py", "results", str(tmp_path / "run")])
    main()
    shown = capsys.readouterr().out
    assert "last raw" in shown
    assert "best raw" in shown


def test_a_name_of_timms_takes_no_recipe_from_the_folder_that_the_program_was_started_in(tmp_path, base, monkeypatch):
    (tmp_path / "config.yaml").write_text(dump(base))
    monkeypatch.chdir(tmp_path)
    assert trained_recipe("resnet18") == ("classify", {})


def test_a_run_is_measured_with_its_own_recipe_unless_the_command_line_says_otherwise(tmp_path, base):
    assert trained_recipe(str(tmp_path)) == ("classify", {})
    (tmp_path / "config.yaml").write_text("mim: {}\n")  # a pretraining run, which is refused later, with a reason
    assert trained_recipe(str(tmp_path)) == ("classify", {})
    (tmp_path / "config.yaml").write_text(dump(replace(base, data=replace(base.data, workers=3))))
    checkpoint = tmp_path / "checkpoints" / "step-000000001"
    checkpoint.mkdir(parents=True)
    for what in (tmp_path, checkpoint):
        config = evaluation_config(request(str(what), "--evaluation.micro-batch-size", "9"))
        assert config.evaluation.micro_batch_size == 9
        assert config.data.workers == 3
        assert config.run.folder == tmp_path  # also where the run was moved


def test_measuring_needs_no_training_shards():
    config = evaluation_config(request("resnet18", "--val-shards", "val"))
    assert config.val_shards == "val"


@pytest.mark.parametrize("old", [["--eval-only", "resnet18"], ["--eval_only=resnet18"]])
def test_the_old_spelling_of_evaluate_is_understood_and_said_once(caplog, old):
    understood = parse_training([*old, "--val-shards", "val"], "finetune/main.py train")
    assert (understood.what, understood.argv) == ("resnet18", ("--val-shards", "val"))
    assert caplog.text.count("is now: finetune/main.py evaluate resnet18") == 1


def test_evaluate_without_what_to_measure_is_refused():
    with pytest.raises(ValueError, match=r"takes first what to measure, such as a run folder, got --val-shards"):
        parse_evaluation(["--val-shards", "val"], "finetune/main.py evaluate")


def request(what, *argv):
    return EvaluationRequest(what=what, argv=argv, program="finetune/main.py evaluate")


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"]])
def test_help_names_every_task_and_its_options_without_torch(command):
    argv = [sys.executable, "finetune/main.py", *command, "--help"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    if command:
        assert {"--task.method", "--detector.kind", "--segmenter.head", "--optimizer.base-lr"} <= set(
            done.stdout.split()
        )
    else:
        assert all(f"  {name} " in done.stdout for name in COMMANDS)
    imported = "import sys; sys.argv = ['finetune/main.py', *sys.argv[1:]]; from finetune.app import main\n"
    imported += "try: main()\nfinally: assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", imported, *command, "--help"], cwd=ROOT, capture_output=True, check=True)


def test_help_of_one_task_is_that_tasks(capsys):
    with pytest.raises(SystemExit):
        parse_training(["--task", "detect", "--help"], "finetune/main.py train")
    assert "--resize.short-sides" in capsys.readouterr().out
