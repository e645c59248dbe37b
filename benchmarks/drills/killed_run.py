"""A real training run in processes that can be killed at any moment; without a launcher, a start takes a second or two.

The processes are forked from a server that has imported the programs already; each then runs the program's own `train`,
joined with the others over gloo as under a launcher.
"""

import contextlib
import importlib
import json
import logging
import multiprocessing
import os
import random
import socket
import sys
import time
import traceback
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

PROGRAMS = ("pretrain.trainer", "finetune.train")
TIME_LIMIT_S = 300


@dataclass(frozen=True, kw_only=True)
class ProcessLayout:
    """How many processes run, and how many loader workers each has."""

    processes: int
    workers: int

    def __str__(self) -> str:
        """Name it in a few words."""
        return f"{self.processes} x {self.workers} workers"


class KilledRun:
    """One run folder's training, started and killed again and again.

    Args:
        program: module whose ``train`` takes the config.
        config: the run's config; its workers are set by the layout.
    """

    def __init__(self, program: str, config: Any) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(PROGRAMS))
        self._program, self._config = program, config
        self.folder: Path = config.run.folder
        self._output = self.folder.with_suffix(".log")
        self._processes: list[BaseProcess] = []

    def start(self, layout: ProcessLayout) -> None:
        """Start or resume the run."""
        config = replace(self._config, data=replace(self._config.data, workers=layout.workers))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank in range(layout.processes):
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": layout.processes, "MASTER_PORT": port}
            process = self._context.Process(target=_work, args=(self._program, config, numbers, self._output))
            process.start()
            self._processes.append(process)

    def wait_done(self) -> None:
        """Wait for the run's end."""
        deadline = time.monotonic() + TIME_LIMIT_S
        while any(process.is_alive() for process in self._processes):
            failed = any(process.exitcode not in (None, 0) for process in self._processes)
            if failed or time.monotonic() > deadline:
                self._give_up("failed" if failed else f"did not end in {TIME_LIMIT_S} s")
            time.sleep(0.02)
        if any(process.exitcode for process in self._processes):
            self._give_up("failed")
        self._processes = []

    def kill_after(self, step: int, *, rng: random.Random) -> int:
        """Kill all processes, in any order, at a random moment after ``step`` was noted; return the last step noted."""
        length = self._notes()[1]
        deadline = time.monotonic() + TIME_LIMIT_S
        while self._notes()[1] == length or self._notes()[0] < step:
            if any(process.exitcode is not None for process in self._processes) or time.monotonic() > deadline:
                self._give_up(f"did not come to step {step}")
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2))
        self.kill(rng=rng)
        return self._notes()[0]

    def kill(self, *, rng: random.Random) -> None:
        """Kill the processes and their loader workers, and see that nothing lives on."""
        tree: list[psutil.Process] = []
        for process in self._processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                parent = psutil.Process(process.pid)
                tree += [parent, *parent.children(recursive=True)]
        rng.shuffle(tree)
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for process in self._processes:
            process.join(30)
        _, alive = psutil.wait_procs(tree, timeout=30)
        if alive:
            sys.exit(f"these processes survived SIGKILL: {alive}")
        self._processes = []

    def _notes(self) -> tuple[int, int]:
        """The last step that process 0 noted, or -1, and the length of all its notes."""
        path = self.folder / "samples-00000.jsonl"
        text = path.read_text() if path.exists() else ""
        whole = [line for line in text.splitlines() if line.endswith("}")]
        return (json.loads(whole[-1])["step"] if whole else -1), len(text)

    def _give_up(self, what: str) -> None:
        self.kill(rng=random.Random(0))
        sys.exit(f"{self.folder.name} {what}:\n{self._output.read_text()[-4000:]}")


def _work(program: str, config: Any, numbers: dict[str, int], output: Path) -> None:
    """Be one process of the run."""
    multiprocessing.set_start_method("fork", force=True)  # of the loader's workers, as under a launcher
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update({name: str(number) for name, number in numbers.items()}, MASTER_ADDR="127.0.0.1")
    if numbers["WORLD_SIZE"] == 1:
        del os.environ["RANK"], os.environ["WORLD_SIZE"]
    logging.basicConfig(level=logging.INFO)
    try:
        importlib.import_module(program).train(config)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # a forked process has no other way out past the loader's workers
