"""How users start and end programs: environments of other launchers, and signals at any moment.

Whoever is signalled has to end within 10 s and say why, whatever it waits for.
"""

import json
from collections.abc import Callable
from pathlib import Path

from benchmarks.drills.trials.case import STOPPED_WITHIN_S, Case
from benchmarks.drills.trials.disturbed import Refusal, disturbed, refusals
from benchmarks.drills.trials.inputs.servers import serve_all_but_tars
from benchmarks.drills.trials.tiny_runs import make_shards, pretraining

TOGETHER = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29787"}
A_LONG_RUN = ("--report.every-steps", "1", "--run.save-every-steps", "1000")
FOREVER = 100_000
"""Steps of a run that does not end by itself."""
A_STEP_AND_SAVING_S = 30
"""What a run that waits for nothing may take to finish its step and to save, on a busy machine."""


HALVES = {
    "world_size_alone": (
        {"WORLD_SIZE": "2"},
        "has WORLD_SIZE=2, but not RANK and MASTER_ADDR and MASTER_PORT: .* unset",
    ),
    "rank_alone": ({"RANK": "3"}, "has RANK=3, but not WORLD_SIZE"),
    "no_address": ({"RANK": "0", "WORLD_SIZE": "2"}, "but not MASTER_ADDR and MASTER_PORT"),
    "no_number": ({**TOGETHER, "WORLD_SIZE": "abc"}, "WORLD_SIZE=abc, expected a whole number of at least 1"),
    "no_port": ({**TOGETHER, "MASTER_PORT": "http"}, "MASTER_PORT=http, expected a whole number"),
    "rank_beyond": ({**TOGETHER, "RANK": "2"}, "expected a RANK below WORLD_SIZE"),
    "local_rank": ({**TOGETHER, "LOCAL_RANK": "first"}, "LOCAL_RANK=first, expected a whole number"),
}
"""Environments that no launcher makes, and what is said of them."""


def half_environments(folder: Path) -> list[str]:
    """Start in environments that no launcher makes."""
    options = pretraining()[1:]
    calls = [
        Refusal(name=name, options=options, environment=environment, says=says)
        for name, (environment, says) in HALVES.items()
    ]
    return refusals(folder, "pretrain", calls)


def left_over_rank(folder: Path) -> list[str]:
    """Start one process with the rank that a scheduler leaves behind."""
    make_shards(folder / "shards", count=8)
    setup = "os.environ['LOCAL_RANK'] = '-1'"
    return disturbed(folder, pretraining(), setup=setup)


def with_shards(folder: Path) -> list[str]:
    """Start the smallest pretraining."""
    make_shards(folder / "shards", count=8)
    return pretraining()


def signalled(
    number: str, *, once: str, setup: str = "", limit_s: int = STOPPED_WITHIN_S, **run: int
) -> Callable[[Path], list[str]]:
    """Start a run and signal it once it has said something."""

    def make(folder: Path) -> list[str]:
        make_shards(folder / "shards", count=8)
        command = pretraining("shards", *A_LONG_RUN, **run)
        act = f"process.send_signal(signal.{number})"
        return disturbed(folder, command, once=once, act=act, setup=setup, limit_s=limit_s)

    return make


def without_data(folder: Path) -> list[str]:
    """Start a run whose tars never come, and signal it while it waits for the first."""
    url = serve_all_but_tars(folder / make_shards(folder / "shards", count=8))
    command = pretraining(url, *A_LONG_RUN, "--data.cache.folder", str(folder / "cache"), workers=1)
    act = "time.sleep(3); process.send_signal(signal.SIGTERM)"
    return disturbed(folder, command, once="energy is not measured", act=act)


def without_manifest(folder: Path) -> list[str]:
    """Verify shards whose manifest never comes, and signal that."""
    return ["data/main.py", "verify", "--shards", serve_all_but_tars(folder, suffix=".json")]


def robbed_of_a_worker(folder: Path) -> list[str]:
    """Kill one of a run's loader workers."""
    make_shards(folder / "shards", count=8)
    command = pretraining("shards", *A_LONG_RUN, steps=FOREVER, workers=1)
    find = "[p for p in psutil.Process(process.pid).children() if 'resource_tracker' not in ' '.join(p.cmdline())]"
    return disturbed(folder, command, once="step 1/", act=f"{find}[0].kill()")


def saved_when_stopped(folder: Path) -> str | None:
    """Look whether a run that was stopped has saved."""
    stopped = folder / "run" / "stopped.json"
    if not stopped.is_file():
        return "the run was not saved"
    step = json.loads(stopped.read_text())["step"]
    return None if list((folder / "run" / "checkpoints").glob(f"step-*{step}")) else f"no checkpoint of step {step}"


CASES = [
    Case(name="rank_left_over", make=left_over_rank, says="report: run", limit_s=120),
    Case(name="half_an_environment", make=half_environments, limit_s=120, never_says="FAULT|Traceback"),
    Case(
        name="an_address_alone_is_one_process",
        make=with_shards,
        environment={"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
        says="report: run/report.html",
    ),
    Case(
        name="others_never_come",
        make=signalled("SIGTERM", once="is waiting for 2 processes at 127.0.0.1:29787"),
        environment=TOGETHER,
        code=143,
        says="stopped by SIGTERM, while waiting for 2 processes at 127.0.0.1:29787",
    ),
    Case(
        name="sighup_saves_and_ends",
        make=signalled("SIGHUP", once="step 1/", steps=FOREVER, limit_s=A_STEP_AND_SAVING_S),
        says="stopping after step .* as asked by SIGHUP",
        check=saved_when_stopped,
    ),
    Case(
        name="sigterm_saves_and_ends",
        make=signalled("SIGTERM", once="step 1/", steps=FOREVER, workers=1, limit_s=A_STEP_AND_SAVING_S),
        says="stopping after step .* as asked by SIGTERM",
        check=saved_when_stopped,
    ),
    Case(
        name="sighup_under_nohup_is_ignored",
        make=signalled(
            "SIGHUP", once="step 1/", setup="signal.signal(signal.SIGHUP, signal.SIG_IGN)", steps=3, limit_s=60
        ),
        says="report: run/report.html",
    ),
    Case(
        name="data_never_comes",
        make=without_data,
        code=143,
        says="stopped by SIGTERM, .*while waiting for data, micro-batch 0 of step 0",
    ),
    Case(
        name="verify_waits_for_a_manifest",
        make=without_manifest,
        stop_after_s=20,
        code=143,
        says=r"stopped by SIGTERM, while waiting for http://127.0.0.1:\d+/manifest.json",
    ),
    Case(
        name="a_loader_worker_is_killed",
        make=robbed_of_a_worker,
        code=1,
        says="error: .*loader worker .*(was killed by the signal Killed|ended unexpectedly).*use fewer --data.workers",
    ),
]
