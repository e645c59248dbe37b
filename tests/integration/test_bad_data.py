"""Data that one of two processes cannot read or decode: the run stops, on both, with the reason, and nothing hangs."""

import functools
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from data.config import DataConfig
from data.loading.mixing import training_order
from data.shards.shard_set import open_shards
from data.sources.scenes import scene_members
from data.writing.writer import NewSample, ShardLimits, write_shards

ROOT = Path(__file__).parents[2]
LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "pretrain/main.py")
RECIPE = (
    "--recipe",
    "benchmarks/drills/resume.yaml",
    "--data.workers",
    "1",
    "--optimizer.steps",
    "6",
    "--report.every-steps",
    "1",
)
DATA = DataConfig(shards=("",), batch_size=32, micro_batch_size=8, window_shards=1, window_samples=64)
TIME_LIMIT_S = 120


def pretrain(*words: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "DS_"))}
    return subprocess.run(
        [*LAUNCH, *RECIPE, *words],
        cwd=ROOT,
        env={**kept, "OMP_NUM_THREADS": "1"},
        timeout=TIME_LIMIT_S,
        capture_output=True,
        text=True,
    )


def write(out: Path, *, broken: frozenset[int] = frozenset()) -> Path:
    samples: list[NewSample] = []
    for number in range(96):
        _, members = scene_members(0, number=number, size=64)
        members["jpg"] = b"\xff\xd8\xff no image" if number in broken else members["jpg"]
        samples.append(NewSample(source=f"scene {number}", members=members, label=0))
    write_shards(samples, out=out, classes=None, limits=ShardLimits(samples=6))
    return out


@pytest.fixture(scope="module")
def rows_of_rank_1(tmp_path_factory):
    """The samples of the first step that only process 1 reads."""
    shards = open_shards(write(tmp_path_factory.mktemp("whole") / "shards"))
    order = training_order(DATA, shards, seed=0)
    return [row for number in (2, 3) for row in order.micro_batch(0, number).tolist()]


def test_too_many_bad_samples_of_one_process_stop_both_at_the_same_step(rows_of_rank_1, tmp_path):
    shard, position, _ = rows_of_rank_1[0]
    shards = write(tmp_path / "shards", broken=frozenset({6 * shard + position}))
    stopped = pretrain("--data.shards", str(shards), "--run.folder", str(tmp_path / "run"), "--data.max-bad-share", "0")
    assert stopped.returncode != 0
    message = "error: 1 of the 32 samples so far could not be decoded, more than data.max-bad-share 0 allows; "
    assert message + f"{tmp_path}/run/bad_" in stopped.stderr  # rank 0's, which met no bad sample itself, or both
    (line,) = [json.loads(text) for text in (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()]
    assert (line["step"], line["id"], line["shard"]) == (
        0,
        6 * shard + position,
        str(shards / f"shard-{shard:06d}.tar"),
    )
    assert line["micro_batch"] in (2, 3)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_shard_that_a_server_never_gives_to_one_process_stops_both_after_the_time_for_retries(
    rows_of_rank_1, tmp_path
):
    shards = write(tmp_path / "shards")
    lost = f"shard-{rows_of_rank_1[0][0]:06d}.tar"
    asked: list[str] = []

    class Server(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path.strip("/"))
            return self.send_error(503) if self.path == f"/{lost}" else super().do_GET()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=shards)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        words = ("--data.cache.folder", str(tmp_path / "cache"), "--data.cache.give-up-s", "4")
        stopped = pretrain("--data.shards", url, "--run.folder", str(tmp_path / "run"), *words)
        server.shutdown()
    assert stopped.returncode != 0
    assert f"{url}/{lost}" in next(
        line for line in stopped.stderr.splitlines() if line.startswith("error: micro-batch")
    )
    assert asked.count(lost) > 1
    assert not (tmp_path / "run" / "bad_samples.jsonl").exists()  # a replacement would not happen again on resume
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_shard_that_one_process_cannot_read_stops_both_with_its_name(rows_of_rank_1, tmp_path):
    shards = write(tmp_path / "shards")
    lost = shards / f"shard-{rows_of_rank_1[0][0]:06d}.tar"
    lost.unlink()
    stopped = pretrain("--data.shards", str(shards), "--run.folder", str(tmp_path / "run"))
    assert stopped.returncode != 0
    assert f"of step 0: the shard {lost} is missing" in stopped.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
