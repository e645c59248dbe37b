"""Run folders: what is written when, what may change on resume, and what a kill leaves."""

import errno
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from engine.config import OptimizerConfig, RunConfig, may_change
from engine.errors import UserError
from engine.recipe import parse
from engine.run.folder import RunFolder, changed_fields


@dataclass(frozen=True, kw_only=True)
class Config:
    """An example."""

    run: RunConfig = field(default_factory=RunConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    name: str = "1e3"
    init: Path | None = None
    workers: int = may_change(2)


def start(folder, config=None, *, checkpoint=True):
    config = config or Config()
    with RunFolder.open(folder, config=config) as run:
        if checkpoint:
            (run.checkpoints / "step-000000010").mkdir(exist_ok=True)
    return run


def test_the_stored_config_reads_back_as_a_recipe(tmp_path):
    config = Config(optimizer=OptimizerConfig(base_lr=1e-20, betas=(0.5, 0.6)), init=Path("/x"))
    run = start(tmp_path / "a" / "b", config)
    assert parse(Config, ["--recipe", str(run.config)]) == config


def test_the_same_config_resumes(tmp_path):
    config = Config(optimizer=OptimizerConfig(eps=1e-9, steps=7), init=Path("/x"))
    start(tmp_path, config)
    start(tmp_path, config)


def test_fields_that_may_change_do_and_are_stored(tmp_path):
    start(tmp_path)
    run = start(tmp_path, Config(workers=9, run=RunConfig(keep_last=5, save_every_steps=3)))
    assert "workers: 9" in run.config.read_text()
    assert "keep_last: 5" in run.config.read_text()


def test_a_changed_recipe_is_refused_with_both_values_of_each_field(tmp_path):
    run = start(tmp_path)
    before = run.config.read_bytes()
    changed = Config(run=RunConfig(seed=3), optimizer=OptimizerConfig(base_lr=3e-4, betas=(0.9, 0.99)), workers=5)
    with pytest.raises(ValueError, match="differs from what is asked") as error:
        start(tmp_path, changed)
    message = str(error.value)
    assert "run.seed: stored 0, asked 3; " in message
    assert "optimizer.base_lr: stored 0.00015, asked 0.0003; " in message
    assert "optimizer.betas: stored [0.9, 0.95], asked [0.9, 0.99]" in message
    assert "workers" not in message
    assert "--run.branch-from" in message
    assert run.config.read_bytes() == before
    start(tmp_path)  # and the lock was released


def test_before_the_first_checkpoint_a_recipe_may_be_corrected(tmp_path):
    start(tmp_path, checkpoint=False)
    start(tmp_path, Config(name="other"), checkpoint=False)


def test_a_field_that_the_stored_config_does_not_know_counts_as_its_default():
    assert changed_fields(Config(), stored={}) == []
    assert changed_fields(Config(name="x"), stored={}) == ["name: not stored, asked 'x'"]
    assert changed_fields(Config(), stored={"old": 1}) == ["old: stored 1, unknown to this version"]


def test_a_second_start_in_the_same_folder_is_refused(tmp_path):
    with RunFolder.open(tmp_path, config=Config()), pytest.raises(ValueError, match="is in use by process"):
        RunFolder.open(tmp_path, config=Config())
    start(tmp_path)


def test_other_processes_of_the_run_take_no_lock_and_write_nothing(tmp_path):
    with RunFolder.open(tmp_path / "x", config=Config(), rank=1):
        assert not (tmp_path / "x").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError, match=r"run folder .*file/x cannot be used: .*file/x: Not a directory; a part of it is a file"
    ):
        start(tmp_path / "file" / "x")


def test_a_full_disk_asks_for_space(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunFolder, "_record", full)
    with pytest.raises(ValueError, match=r"No space left on device; free some space, then start again"):
        start(tmp_path / "x")
    assert not (tmp_path / "x" / "lock.json").exists()


def test_a_kill_while_the_config_is_written_bricks_nothing(tmp_path, monkeypatch):
    start(tmp_path)
    for dies_at in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os if dies_at == "fsync" else Path, dies_at, _die)
            with pytest.raises(KeyboardInterrupt):
                start(tmp_path)
        start(tmp_path)


def _die(*_):
    raise KeyboardInterrupt


def test_an_unreadable_config_is_named(tmp_path):
    start(tmp_path).config.write_text("a: [")
    with pytest.raises(ValueError, match=r"config\.yaml: line 1: expected YAML.*; restore config\.yaml or"):
        start(tmp_path)


def test_each_start_adds_its_environment(tmp_path):
    start(tmp_path)
    starts = json.loads(start(tmp_path).environment.read_text())
    assert len(starts) == 2
    assert {"commit", "python", "packages", "host", "cpu", "memory_bytes", "gpus", "command"} <= starts[0].keys()
    assert "torch" in starts[0]["packages"]


def test_a_stop_file_is_seen_and_removed_when_the_run_has_ended(tmp_path):
    with RunFolder.open(tmp_path, config=Config()) as run:
        assert not run.stop_requested()
        (tmp_path / "STOP").touch()
        assert run.stop_requested()
        assert (tmp_path / "STOP").exists()
    assert not (tmp_path / "STOP").exists()


def test_metrics_past_the_checkpoint_move_to_the_side_file(tmp_path):
    lines = [json.dumps({"step": step, "loss": 0.5}) + "\n" for step in range(1, 6)]
    run = start(tmp_path)
    run.metrics.write_text("".join(lines) + '{"step": 2, "lo')
    run.cut_metrics(3)
    assert run.metrics.read_text() == "".join(lines[:3])
    assert (tmp_path / "metrics.cut.jsonl").read_text() == "".join(lines[3:]) + '{"step": 2, "lo\n'
    run.cut_metrics(3)
    assert run.metrics.read_text() == "".join(lines[:3])
    run.cut_metrics(0)
    assert run.metrics.read_text() == ""


def test_no_metrics_need_no_cut(tmp_path):
    run = start(tmp_path)
    run.cut_metrics(3)
    assert not run.metrics.exists()


def test_a_new_run_folder_is_closed_to_others_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        start(tmp_path / "runs" / "x")
    finally:
        os.umask(before)
    assert (tmp_path / "runs" / "x").stat().st_mode & 0o777 == 0o750


def test_a_folder_that_exists_keeps_its_permissions(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    start(tmp_path / "shared")
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o777


def test_that_a_run_was_stopped_stands_there_until_it_goes_on(tmp_path):
    with RunFolder.open(tmp_path, config=Config()) as run:
        run.note_stopped(7, reason="SIGUSR2", signalled_at=1.5)
    content = json.loads(run.stopped.read_text())
    assert (content["step"], content["reason"], content["asked"]) == (7, "SIGUSR2", 1.5)
    assert content["saved"] > 1.5
    with RunFolder.open(tmp_path, config=Config()):
        assert not run.stopped.exists()


def test_refused_start_leaves_no_folder(tmp_path):
    path = tmp_path / "runs" / "x"
    with pytest.raises(UserError), RunFolder.open(path, config=Config()):
        raise UserError("no such window")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("trace", ["metrics.jsonl", "checkpoints/step-000000010/index", "launch/job.json"])
def test_run_that_has_begun_keeps_its_folder_and_a_bug_keeps_its_traces(tmp_path, trace):
    path = tmp_path / "runs" / "x"

    def begin_and_refuse():
        (path / trace).parent.mkdir(parents=True, exist_ok=True)
        (path / trace).touch()
        raise UserError("not finite")

    with pytest.raises(UserError), RunFolder.open(path, config=Config()):
        begin_and_refuse()
    assert (path / trace).exists()
    with pytest.raises(ZeroDivisionError), RunFolder.open(tmp_path / "y", config=Config()):
        raise ZeroDivisionError
    assert (tmp_path / "y").exists()


def test_refused_start_leaves_what_others_put_into_its_folder(tmp_path):
    path = tmp_path / "runs" / "x"

    def fill_and_refuse():
        (path / "notes.txt").write_text("mine")
        (path / "checkpoints" / "from-elsewhere").mkdir()
        raise UserError("no such window")

    with pytest.raises(UserError), RunFolder.open(path, config=Config()):
        fill_and_refuse()
    left = sorted(str(file.relative_to(path)) for file in path.rglob("*"))
    assert left == ["checkpoints", "checkpoints/from-elsewhere", "notes.txt"]


def test_refused_start_leaves_the_folder_to_a_start_that_took_it_in_between(tmp_path):
    path, others = tmp_path / "x", []

    def take_over():
        (path / "lock.json").unlink()  # as where this one's lock counts as stale
        others.append(RunFolder.open(path, config=Config(name="other")))

    def begin(run):
        run.at_close(take_over)
        raise UserError("no such window")

    with pytest.raises(UserError, match="no such window"), RunFolder.open(path, config=Config()) as run:
        begin(run)
    assert (path / "lock.json").exists()
    assert "other" in (path / "config.yaml").read_text()
    others[0].close()


def test_refused_start_holds_its_lock_until_its_files_are_gone(tmp_path, monkeypatch):
    remove, held = Path.unlink, []

    def unlink(path, **options):
        if path.name == "config.yaml":
            held.append((path.parent / "lock.json").exists())
        remove(path, **options)

    monkeypatch.setattr(Path, "unlink", unlink)
    test_refused_start_leaves_no_folder(tmp_path)
    assert held == [True]


def test_folder_that_was_there_stays_after_a_refusal(tmp_path):
    with pytest.raises(UserError), RunFolder.open(tmp_path, config=Config()):
        raise UserError("no such window")
    assert tmp_path.exists()


def fill(folder, files):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()


@pytest.mark.parametrize(
    "files",
    [
        ["manifest.json"],
        ["000000.tar"],
        ["shard-000001.tar", "code.tar"],
        ["1.JPG", "2.jpeg", "3.png", "labels.csv"],
        ["cats/1.png", "cats/2.png", "dogs/1.png", "labels.csv"],
        ["cats/1.png", "cats/2.png", "dogs/1.png", "birds/1.webp", ".cache/index"],
    ],
)
def test_folder_of_shards_or_images_is_no_run_folder(tmp_path, files):
    fill(tmp_path, files)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"is no run folder: it holds [\w/.-]+; choose another --run.folder") as raised:
        RunFolder.open(tmp_path, config=Config())
    assert any(f" {file};" in str(raised.value) for file in files)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "files",
    [
        ["code.tar", "code-20261130.tar", "notes/manifest.json"],
        ["lr.png", "plots/lr.png", "plots/loss.png", "plots/speed.png"],
        ["shards/manifest.json", "shards/shard-000000.tar"],
        ["train/manifest.json", "train/000000.tar", "val/manifest.json", "val/000000.tar"],
        ["plots/1.png", "plots/2.png", "plots/3.png", "notes/a.txt", "logs/1.log"],
    ],
)
def test_run_begins_beside_other_files(tmp_path, files):
    fill(tmp_path, files)
    start(tmp_path)


def test_subfolder_that_may_not_be_read_is_none_of_data(tmp_path, monkeypatch):
    (tmp_path / "private").mkdir()
    look = Path.iterdir

    def iterdir(path):
        if path.name == "private":
            raise PermissionError(13, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    start(tmp_path)


def test_run_that_began_in_such_a_folder_goes_on(tmp_path):
    start(tmp_path)
    (tmp_path / "000000.tar").touch()
    start(tmp_path)
