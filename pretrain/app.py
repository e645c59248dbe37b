"""The pretraining program: trains by default; the first word may name another command (``COMMANDS``)."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from engine.errors import UserError, one_line_errors
from engine.recipe import parse
from engine.run.status import status
from pretrain.config import PretrainConfig
from pretrain.memory import explain_out_of_memory, probe_memory
from pretrain.replay import replay
from pretrain.report import write_report
from pretrain.trainer import train
from pretrain.verify_resume.proof import verify_resume


@one_line_errors
def main() -> None:
    """Run the command that the first word names, or train."""
    logging.basicConfig(
        level=logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR, format="%(message)s"
    )
    command = COMMANDS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if command is not None:
        command(sys.argv[2:])
        return
    config = parse(PretrainConfig)
    with explain_out_of_memory(config):
        train(config)


def _status(words: list[str]) -> None:
    """``status RUN``: step, time left, images/s, last checkpoint."""
    Console().print(status(_run_folder(words, "status")))


def _report(words: list[str]) -> None:
    """``report RUN``: write report.html again."""
    Console().print(f"report: {write_report(_run_folder(words, 'report'))}")


def _probe_memory(words: list[str]) -> None:
    """``probe-memory --recipe FILE``: which micro-batch sizes fit; reads no data."""
    config = parse(PretrainConfig, ["--data.shards", "none", *words])
    Console().print(probe_memory(config))


def _replay(words: list[str]) -> None:
    """``replay RECORD``: repeat a micro-batch that was not finite, and show where it goes wrong."""
    if len(words) != 1:
        raise UserError(
            f"replay takes one record, runs/x/non_finite/step-.../micro-batch-....json, got {len(words)} words"
        )
    Console().print(replay(Path(words[0])))


def _verify_resume(words: list[str]) -> None:
    """``verify-resume --recipe FILE``: prove here that a killed run ends as one left alone; exit code 1 if it does not."""
    evidence = verify_resume(words)
    Console().print(evidence.table())
    if not evidence.proved:
        sys.exit(1)


def _run_folder(words: list[str], command: str) -> Path:
    if len(words) != 1 or not Path(words[0]).is_dir():
        raise UserError(f"{command} takes one run folder that exists, got {' '.join(words) or 'nothing'}")
    return Path(words[0])


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "status": _status,
    "report": _report,
    "probe-memory": _probe_memory,
    "replay": _replay,
    "verify-resume": _verify_resume,
}
