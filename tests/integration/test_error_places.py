"""A bug shows its file and line wherever it arises: in the loop, in a loader worker, on any process of the launcher."""

import sys

import pytest

from tests.integration.launched import launch, start

BUG = "first, second = (1, 2, 3)"
COMPARE = f"""import os

from pretrain.model.greenmim import GreenMIM

compare = GreenMIM.compare


def planted(*arguments, **options):
    if os.environ.get("RANK", "0") == "{{rank}}":
        {BUG}
    return compare(*arguments, **options)


GreenMIM.compare = planted
"""
BUILDER = f"""from pretrain.batches.micro_batch import PretrainBuilder


def planted(*arguments, **options):
    {BUG}


PretrainBuilder.__call__ = planted
"""
LINE_OF_COMPARE, LINE_OF_BUILDER = (
    text.split("\n").index(line) + 1 for text, line in ((COMPARE, f"        {BUG}"), (BUILDER, f"    {BUG}"))
)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    shards = tmp_path_factory.mktemp("scenes") / "shards"
    arguments = ("write", "--source", "scenes", "--count", "32", "--size", "64", "--out", str(shards))
    written = start(sys.executable, "data/main.py", *arguments)
    assert written.returncode == 0, written.stderr
    recipe = ("--recipe", "benchmarks/drills/resume.yaml", "--optimizer.steps", "2", "--optimizer.warmup-steps", "1")
    return (*recipe, "--data.shards", str(shards), "--distributed.precision", "fp32")


@pytest.fixture
def run(words, tmp_path):
    def run(bug, *more, processes):
        file = tmp_path / "planted_bug.py"
        file.write_text(bug)
        arguments = ("--extension", str(file), *words, "--run.folder", str(tmp_path / "run"), *more)
        if processes > 1:
            return launch("pretrain", *arguments, processes=processes), file
        return start(sys.executable, "pretrain/main.py", *arguments), file

    return run


def assert_shown(done, file, *, line):
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert f'File "{file}", line {line}, in planted' in said, said[-4000:]
    assert BUG in said
    assert "ValueError: too many values to unpack (expected 2)" in said


@pytest.mark.parametrize("processes", [1, 2])
def test_a_bug_of_the_loop_shows_its_line(run, processes):
    done, file = run(COMPARE.format(rank=0), "--data.workers", "0", processes=processes)
    assert_shown(done, file, line=LINE_OF_COMPARE)


def test_a_bug_that_one_process_alone_meets_shows_its_line(run):
    done, file = run(COMPARE.format(rank=1), "--data.workers", "0", processes=2)
    assert_shown(done, file, line=LINE_OF_COMPARE)


@pytest.mark.parametrize(("processes", "workers"), [(1, 1), (2, 1)])
def test_a_bug_of_a_loader_worker_shows_its_line_and_micro_batch(run, processes, workers):
    done, file = run(BUILDER, "--data.workers", str(workers), processes=processes)
    assert_shown(done, file, line=LINE_OF_BUILDER)
    assert "while micro-batch 0 of step 0 was built" in done.stderr
