"""What ``test_survival.py`` launches: the tiny run (``tests/tiny_run.py``) with one thing going wrong in it.

Arguments: run folder, what goes wrong (``none``, ``poison``, ``hang``, ``stop`` or ``slow``), distributed engine, ZeRO stage.
"""

import logging
import os
import signal
import sys
import time
from pathlib import Path

from engine.errors import one_line_errors
from tests.tiny_run import config_of, run_tiny

POISONED = {(4, 2), (6, 1)}
STALL_TIMEOUT_S = 4.0


@one_line_errors
def main() -> None:
    folder, what, engine, stage = Path(sys.argv[1]), *sys.argv[2:5]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    last = int(os.environ.get("WORLD_SIZE", "1")) - 1

    def before_step(training, step):
        if training.engine.rank != last:
            return
        if what == "hang" and step == 3:
            time.sleep(3600)
        if what == "stop" and step == 3:
            os.kill(os.getpid(), signal.SIGSTOP)
        if what == "slow":
            with training.reporter.timed("compute"):
                time.sleep(0.3)

    config = config_of(
        folder,
        run={"stall_timeout_s": STALL_TIMEOUT_S},
        distributed={"engine": engine, "zero_stage": int(stage)},
        report={"every_steps": 4},
    )
    run_tiny(config, poisoned=POISONED if what == "poison" else (), before_step=before_step)


if __name__ == "__main__":
    main()
