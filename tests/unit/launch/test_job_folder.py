"""What is kept of jobs: it reads back, nobody else can write there, and how a run ended is read from what it left."""

import json
import os
from pathlib import Path

import pytest

from launch.attempt.job_end import end_attempt, outcome_of
from launch.config import ClusterConfig, RestartConfig
from launch.job_folder import Job, JobFolder
from launch.program_calls import Call


@pytest.fixture
def folder(tmp_path):
    folder = JobFolder(tmp_path / "runs" / "x")
    folder.make()
    return folder


def job_of(folder, **cluster):
    call = Call(
        program="pretrain",
        arguments=("--recipe", "RECIPE"),
        folder=folder.run,
        recipe="a: 1\n",
        starter="accelerate",
        zero_stage=2,
    )
    return Job(call=call, cluster=ClusterConfig(**cluster), nodes=2, cwd="/somewhere", ids=("7",))


def test_a_job_reads_back_as_it_was_written(folder):
    job = job_of(folder, setup=("module load x",), environment=("A=1",), restart=RestartConfig(limit=4))
    folder.write(job)
    assert folder.read() == job
    assert folder.recipe.read_text() == "a: 1\n"
    folder.add_id("8")
    assert folder.read().ids == ("7", "8")


def test_the_program_gets_the_recipe_that_was_submitted(folder):
    script, option, recipe = folder.program(job_of(folder))
    assert script.endswith("/pretrain/main.py")
    assert (option, Path(recipe)) == ("--recipe", folder.recipe.absolute())


def test_others_can_neither_read_the_run_nor_put_pickles_into_it(folder):
    assert folder.run.stat().st_mode & 0o777 == 0o750
    assert folder.path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("where", ["run", "above"])
def test_a_run_folder_that_others_could_exchange_is_refused(where, tmp_path):
    run = tmp_path / "above" / "run"
    run.mkdir(parents=True)
    open_folder = run if where == "run" else run.parent
    open_folder.chmod(0o777)
    with pytest.raises(ValueError, match=rf"{open_folder} can be written to by everybody.*chmod o-w"):
        JobFolder(run).make()
    assert not (run / "launch").exists()
    open_folder.chmod(0o1777)
    JobFolder(run).make()


def test_a_link_in_its_place_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "launch").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="launch is a link, and jobs run what lies there"):
        JobFolder(tmp_path).make()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder away")
@pytest.mark.parametrize("name", [".", "launch"])
def test_a_folder_of_somebody_else_is_refused(name, tmp_path):
    (tmp_path / "launch").mkdir(mode=0o700)
    os.chown(tmp_path / name, 4321, -1)
    with pytest.raises(ValueError, match="belongs to another user"):
        JobFolder(tmp_path).make()


def test_a_folder_that_others_may_write_to_is_refused(tmp_path):
    folder = JobFolder(tmp_path)
    folder.path.mkdir()
    folder.path.chmod(0o777)
    with pytest.raises(ValueError, match="is open to others, who could put code there: chmod 700"):
        folder.make()


def test_a_run_without_a_job_says_so(tmp_path):
    with pytest.raises(ValueError, match="has no job: expected"):
        JobFolder(tmp_path).read()


def test_events_survive_a_line_cut_short_by_a_kill(folder):
    folder.note("submit", nodes=2)
    with (folder.path / "events.jsonl").open("a") as file:
        file.write('{"event": "sta')
    assert [event["event"] for event in folder.events()] == ["submit"]


def stop(folder, reason):
    folder.note("start", step=0)
    (folder.run / "stopped.json").write_text(json.dumps({"step": 3, "reason": reason, "saved": 1.0}))


def test_exit_code_0_is_finished_unless_the_run_was_stopped(folder):
    assert outcome_of(folder, exit_code=0) == "finished"
    stop(folder, "SIGUSR2")
    assert outcome_of(folder, exit_code=0) == "stopped"
    assert outcome_of(folder, exit_code=1) == "stopped"  # a launcher that the signal reached first


def test_what_an_earlier_attempt_left_says_nothing_of_one_that_never_started(folder):
    stop(folder, "SIGUSR2")
    folder.note("end", outcome="stopped", step=3)
    assert outcome_of(folder, exit_code=137) == "failed"


def test_a_stop_that_the_user_asked_for_is_the_end(folder):
    stop(folder, "the STOP file")
    assert outcome_of(folder, exit_code=0) == "ended by the user"


def test_a_cancelled_job_is_the_end_however_it_ended(folder):
    folder.cancelled.touch()
    assert outcome_of(folder, exit_code=1) == "ended by the user"


def test_a_failure_after_the_warning_is_the_schedulers_and_without_it_the_programs(folder):
    folder.note("start", step=0)
    assert outcome_of(folder, exit_code=1) == "failed"
    folder.note("failed by itself", node=1, code=1)
    folder.note("signal", name="SIGTERM")  # comes to all nodes when one of them fails
    assert outcome_of(folder, exit_code=1) == "failed"
    folder.note("signal", name="SIGUSR2")
    assert outcome_of(folder, exit_code=1) == "stopped"
    folder.note("start", step=0)
    assert outcome_of(folder, exit_code=1) == "failed"


def test_a_preemption_that_cannot_save_is_no_failure(folder):
    folder.note("start", step=0)
    folder.note("signal", name="SIGTERM")
    assert outcome_of(folder, exit_code=1) == "stopped"


def test_the_conclusion_is_written_down_with_the_newest_checkpoint(folder):
    folder.note("start", step=0)
    (folder.run / "checkpoints" / "step-000000040").mkdir(parents=True)
    (folder.run / "checkpoints" / "step-000000050.partial").mkdir()
    decision = end_attempt(folder, job_of(folder), exit_code=1)
    assert decision.go_on
    end, decided = folder.events()[-2:]
    assert (end["outcome"], end["step"], end["code"]) == ("failed", 40, 1)
    assert decided["reason"] == decision.reason
