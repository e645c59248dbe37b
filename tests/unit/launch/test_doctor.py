"""The doctor's judgements: each fault is seen, named, and comes with what to do; what is sound is let alone."""

import io
import os
import shutil
import signal
import time

from rich.console import Console

from engine.recipe import parse
from launch.attempt.processes import SUPERVISOR
from launch.doctor.disk import check_shared, check_space, check_write_speed, leave_mark, remove_mark
from launch.doctor.findings import Finding, findings_table, judged, read_findings, write_findings
from launch.doctor.loader import check_shared_memory
from launch.doctor.software import check_builds, check_versions, versions
from launch.doctor.stop_signal import Mailbox, check_delivery, send_warning
from pretrain.config import PretrainConfig


def test_advice_stands_only_where_it_is_needed():
    assert judged("x", "fine", advice="do this") == Finding(check="x", level="ok", said="fine")
    assert judged("x", "slow", warn=True, advice="do this").level == "warning"
    assert judged("x", "gone", warn=True, fail=True, advice="do this") == Finding(
        check="x", level="failure", said="gone", advice="do this"
    )


def test_findings_read_back_and_stand_in_the_table(tmp_path):
    findings = [judged("disk", "full", fail=True, advice="make room"), judged("clocks", "0.1 s apart")]
    assert read_findings(tmp_path) == []
    write_findings(tmp_path, findings)
    assert read_findings(tmp_path) == findings
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(findings_table(findings, title="t"))
    shown = console.export_text()
    assert "make room" in shown
    assert "failure" in shown


def test_a_disk_without_room_for_the_checkpoints_fails(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    assert check_space(tmp_path, num_parameters=1000, kept=2).level == "ok"
    too_many = free // (16 * 3) * 2
    finding = check_space(tmp_path, num_parameters=too_many, kept=2)
    assert finding.level == "failure"
    assert "--run.keep-last" in finding.advice
    assert check_space(tmp_path, num_parameters=int(free / (16 * 3) * 0.7), kept=2).level == "warning"


def test_a_checkpoint_that_takes_long_to_write_is_named(tmp_path):
    small = 1 << 24
    assert check_write_speed(tmp_path, num_parameters=1000, num_bytes=small).level == "ok"
    finding = check_write_speed(tmp_path, num_parameters=10**15, num_bytes=small)
    assert finding.level == "warning"
    assert "--cluster.warning-s" in finding.advice
    assert list(tmp_path.iterdir()) == []


def test_processes_that_see_another_disk_are_found(tmp_path):
    (tmp_path / "other").mkdir()
    leave_mark(tmp_path, token="a", rank=0)
    leave_mark(tmp_path / "other", token="a", rank=1)
    assert check_shared(tmp_path, token="a", world_size=2, wait_s=0.3) == [1]
    leave_mark(tmp_path, token="a", rank=1)
    assert check_shared(tmp_path, token="a", world_size=2, wait_s=0.3) == []
    for rank in range(2):
        remove_mark(tmp_path, token="a", rank=rank)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_nodes_with_other_versions_and_missing_packages_are_named():
    here = versions()
    assert check_versions([here, here]).level == "ok"
    differs = check_versions([here, {**here, "torch": "1.0"}])
    assert differs.level == "failure"
    assert "other nodes differ in torch" in differs.said
    assert "not installed: timm" in check_versions([{**here, "timm": "not installed"}]).said


def test_missing_compilers_and_faulty_operators_are_named():
    assert check_builds([[], []], faults=[None, None]).level == "ok"
    assert "not found: ninja" in check_builds([["ninja"], []], faults=[None]).said
    assert "no such thing" in check_builds([[]], faults=["no such thing"]).said


def test_without_slurms_commands_each_nodes_launcher_sends_the_warning(monkeypatch):
    """As in a container that has none: only one process of a node asks its launcher."""
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv(SUPERVISOR, "4711")
    assert [send_warning(rank=rank, local_rank=rank % 2) for rank in range(4)] == ["the launcher"] * 4
    assert sent == [(4711, signal.SIGUSR2)] * 2
    monkeypatch.delenv(SUPERVISOR)
    assert send_warning(rank=3, local_rank=1) == "this process itself"
    assert sent[-1] == (os.getpid(), signal.SIGUSR2)


def test_a_signal_that_comes_is_timed_and_one_that_does_not_is_a_failure(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv(SUPERVISOR, str(os.getpid()))
    before = signal.getsignal(signal.SIGUSR2)
    try:
        mailbox = Mailbox()
        sent_at = time.time()
        assert send_warning(rank=1, local_rank=0) == "the launcher"
        took = mailbox.wait(sent_at=sent_at)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert took is not None
    assert 0 <= took < 5
    assert check_delivery([took, 0.1], sender="Slurm").level == "ok"
    finding = check_delivery([0.2, None], sender="Slurm")
    assert finding.level == "failure"
    assert "processes 1 did not get it" in finding.advice


def test_shared_memory_must_hold_what_the_workers_hand_over():
    words = ["--data.shards", "x", "--data.workers", "4", "--data.micro-batch-size", "64"]
    config = parse(PretrainConfig, words)
    in_flight_bytes = 2 * (4 * 2 + 1) * 64 * 3 * config.backbone.img_size[0] * config.backbone.img_size[1]
    levels = []
    for free_bytes in (2 * in_flight_bytes, in_flight_bytes, in_flight_bytes - 1):
        (finding,) = check_shared_memory(config, processes_per_node=2, free_bytes=free_bytes)
        levels.append(finding.level)
    assert levels == ["ok", "warning", "failure"]
    assert "--shm-size" in finding.advice
    assert check_shared_memory(config, processes_per_node=2, free_bytes=None) == []
    no_workers = parse(PretrainConfig, [*words, "--data.workers", "0"])
    assert check_shared_memory(no_workers, processes_per_node=2, free_bytes=0) == []
