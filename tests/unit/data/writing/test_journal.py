"""Writing that goes on after a kill: the same bytes as without one, finished shards left as they are."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.config import DataConfig
from data.shards.shard_set import open_shards
from data.writing.journal import Journal, Rejected, check_folder, resume_journal
from data.writing.writer import NewSample, ShardLimits, resume_shards, write_shards

ROOT = Path(__file__).resolve().parents[4]
LIMITS = ShardLimits(samples=3)


@pytest.fixture
def samples(encoded):
    """Ten samples, of which number 4 and 9 cannot be read."""
    return [
        Rejected(source=f"{n}.jpg", reason="broken")
        if n in (4, 9)
        else NewSample(source=f"{n}.jpg", members={"jpg": encoded(n)}, label=n % 2)
        for n in range(10)
    ]


@pytest.fixture
def resume(samples):
    def resume(out, *, stop=None, plan=None, limits=LIMITS):
        """Write, and stop after this many samples as a kill would; return the positions that were asked for."""
        asked = []

        def samples_from(position):
            asked.append(position)
            yield from samples[position:stop]
            if stop is not None:
                raise KeyboardInterrupt

        plan = plan or {"seed": 1}
        if stop is None:
            resume_shards(samples_from, out=out, plan=plan, classes=("a", "b"), limits=limits)
        else:
            with pytest.raises(KeyboardInterrupt):
                resume_shards(samples_from, out=out, plan=plan, classes=("a", "b"), limits=limits)
        return asked[0]

    return resume


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_whenever_it_is_stopped_the_files_are_those_of_a_run_without_a_break(resume, tmp_path):
    resume(tmp_path / "whole")
    assert sorted(contents(tmp_path / "whole")) == sorted(
        [
            "bad.jsonl",
            "manifest.json",
            "plan.json",
            *(f"shard-00000{n}.{kind}" for n in range(3) for kind in ("idx", "sources.jsonl", "tar")),
        ]
    )
    for stop in range(10):
        resume(tmp_path / str(stop), stop=stop)
        assert resume(tmp_path / str(stop)) == (0 if stop < 3 else 3 if stop < 7 else 7)
        assert contents(tmp_path / str(stop)) == contents(tmp_path / "whole"), stop


def test_finished_shards_are_not_written_again(resume, tmp_path):
    resume(tmp_path, stop=8)
    before = (tmp_path / "shard-000001.tar").stat()
    resume(tmp_path)
    after = (tmp_path / "shard-000001.tar").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_another_plan_is_refused_with_both_values(resume, tmp_path):
    resume(tmp_path, stop=5)
    with pytest.raises(ValueError, match="was begun with --seed 1, now it is 2: give the same to go on, delete"):
        resume(tmp_path, plan={"seed": 2})
    resume(tmp_path)
    with pytest.raises(ValueError, match="was begun with --seed 1, now it is 2"):
        check_folder(tmp_path, plan={"seed": 2})
    assert check_folder(tmp_path, plan={"seed": 1})


def test_a_default_that_was_another_before_is_no_other_plan(resume, tmp_path):
    before, now = {"max_pixels": 178_956_970}, {"max_pixels": DataConfig.max_pixels}
    resume(tmp_path, stop=5, plan=before)
    with pytest.raises(ValueError, match="begun with --max-pixels 178956970, now it is 1000"):
        resume(tmp_path, plan={"max_pixels": 1000})
    assert resume(tmp_path, plan=now) == 3
    assert check_folder(tmp_path, plan=now)
    with pytest.raises(ValueError, match="begun with --max-pixels"):
        check_folder(tmp_path, plan=before)


def test_where_no_shard_is_finished_another_plan_starts_over(resume, tmp_path):
    resume(tmp_path, stop=2)
    assert resume(tmp_path, plan={"seed": 2}) == 0
    assert json.loads((tmp_path / "plan.json").read_text()) == {"seed": 2}


@pytest.mark.parametrize("damage", ["torn line", "lost tar", "short tar", "lost index"])
def test_what_is_not_as_the_journal_says_is_written_again(resume, tmp_path, damage):
    resume(tmp_path / "whole")
    out = tmp_path / "out"
    resume(out, stop=8)
    journal = out / "journal.jsonl"
    if damage == "torn line":
        journal.write_bytes(journal.read_bytes()[:-9])
    elif damage == "lost tar":
        (out / "shard-000001.tar").unlink()
    elif damage == "short tar":
        (out / "shard-000001.tar").write_bytes(b"x")
    else:
        (out / "shard-000001.idx").unlink()
    assert resume(out) == 3
    assert contents(out) == contents(tmp_path / "whole")


def test_after_too_many_bad_files_it_goes_on_with_a_higher_limit(resume, tmp_path):
    resume(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"2 files cannot be read, the last 9\.jpg"):
        resume(tmp_path / "out", limits=ShardLimits(samples=3, max_bad=1))
    assert resume(tmp_path / "out") == 7
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_writer_without_a_plan_starts_over(resume, samples, tmp_path):
    resume(tmp_path, stop=8)
    manifest = write_shards(samples[:2], out=tmp_path, classes=None, limits=LIMITS)
    assert {path.name for path in tmp_path.iterdir()} == {
        "manifest.json",
        *(f"shard-000000.{kind}" for kind in ("tar", "idx", "sources.jsonl")),
    }
    assert manifest.num_samples == 2


def test_two_processes_do_not_write_to_one_folder(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from data.writing.journal import resume_journal; "
        f"j = resume_journal(Path({str(tmp_path)!r}), plan={{'seed': 1}}); print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert other.stdout
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="another process is writing to"):
            resume_journal(tmp_path, plan={"seed": 1})
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    journal = resume_journal(tmp_path, plan={"seed": 1})
    assert isinstance(journal, Journal)
    journal.close()


def command(source, out, *, processes):
    words = [
        "--source",
        source,
        "--out",
        out,
        "--samples-per-shard",
        20,
        "--val-fraction",
        0.2,
        "--processes",
        processes,
    ]
    return [sys.executable, "data/main.py", "write", *map(str, words)]


@pytest.mark.slow
def test_killed_at_random_moments_the_program_ends_with_the_same_files(encoded, tmp_path):
    source, out = tmp_path / "images", tmp_path / "out"
    for number in range(600):
        path = source / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number, height=600, width=800) if number % 50 else b"no image")
    subprocess.run(command(source, tmp_path / "whole", processes=1), cwd=ROOT, check=True, timeout=300)
    chance = random.Random(0)
    kills, children = 0, set()
    for attempt in range(30):
        program = subprocess.Popen(command(source, out, processes=1 + attempt % 3), cwd=ROOT)
        _wait_for_progress(program, out=out, shards=chance.randint(2, 5), moment_s=chance.uniform(0, 0.03))
        children |= _children(program.pid)
        program.send_signal(signal.SIGKILL)
        kills += program.wait() == -signal.SIGKILL
        if program.returncode == 0:
            break
    assert program.returncode == 0
    assert kills >= 5
    assert contents(out) == contents(tmp_path / "whole")
    assert open_shards(out / "train").num_samples == 470
    time.sleep(2)
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()], "the killed program's processes live on"


def _wait_for_progress(program, *, out, shards, moment_s):
    """Wait until the program has written so many shards more, or ended, and then a moment."""
    begin = len(list(out.rglob("shard-*.tar")))
    while program.poll() is None and len(list(out.rglob("shard-*.tar"))) < begin + shards:
        time.sleep(0.002)
    time.sleep(moment_s)


def _children(pid):
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return set()
    return {int(child) for child in listed}
