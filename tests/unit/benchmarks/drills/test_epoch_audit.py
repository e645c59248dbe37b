"""The audit sees what is wrong with notes that are tampered with."""

import json

import numpy as np
import pytest

from benchmarks.drills.epoch_audit import COUNTS, EPOCHS, NUM_MICRO_BATCHES, audit, config_of, order_of, plan
from data.shards.shard_set import open_shards

RUNS = ("plain", "repeats", "mixed")


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """Return runs and configs by name."""
    folder = tmp_path_factory.mktemp("audit")
    return {run.name: (run, config_of(run, folder=folder)) for run in plan(folder, num_samples=60)}


@pytest.fixture
def noted(audited):
    """Write what a faultless run would note; return its lines and a function that audits them."""

    def noted(name):
        run, config = audited[name]
        lines = list(notes(run, config))
        return lines, lambda: audit_of(run, config, lines)

    return noted


def notes(run, config):
    order, sizes = order_of(run, config), open_shards(config.data.shards).sizes
    starts = np.cumsum(sizes) - sizes
    for step in range(EPOCHS * order.steps_per_epoch):
        for number in range(NUM_MICRO_BATCHES):
            rows = order.micro_batch(step, number)
            ids, repeats = (starts[rows[:, 0]] + rows[:, 1]).tolist(), rows[:, 2].tolist()
            bad = [[i, str(i), "broken"] for i in ids if i in run.broken]
            repeats = [-1 if i in run.broken else repeat for i, repeat in zip(ids, repeats, strict=True)]
            ids = [-1 if i in run.broken else i for i in ids]
            yield {"step": step, "micro_batch": number, "ids": ids, "repeats": repeats, "bad": bad}


def audit_of(run, config, lines):
    folder = config.run.folder
    folder.mkdir(exist_ok=True)
    (folder / "samples-00000.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first = {}
    for line in lines:
        for number, *_ in line["bad"]:
            first.setdefault(number, {"id": number, "step": line["step"], "micro_batch": line["micro_batch"]})
    (folder / "bad_samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in first.values()))
    replaced = sum(len(line["bad"]) for line in lines)
    (folder / "metrics.jsonl").write_text(json.dumps({"bad_samples": replaced}) + "\n")
    figures = audit(run, config)
    return {name: figures[name] for name in COUNTS if figures.get(name)}


@pytest.mark.parametrize("name", RUNS)
def test_faultless_notes_pass(noted, name):
    lines, run_audit = noted(name)
    assert run_audit() == {}
    assert any(line["bad"] for line in lines)


@pytest.mark.parametrize("name", RUNS)
def test_a_sample_in_the_place_of_another_is_lost_and_repeated(noted, name):
    lines, run_audit = noted(name)
    sound = [line for line in lines[: len(lines) // EPOCHS] if not line["bad"]]
    often = sound[0]["ids"][0]
    for line in sound[1:4]:
        line["ids"] = [often] * len(line["ids"])
    figures = run_audit()
    assert figures["differing"] == 3
    assert figures["repeated"] > 0
    assert figures["lost"] > 0


@pytest.mark.parametrize("name", RUNS)
def test_a_micro_batch_that_is_not_there_is_missing(noted, name):
    lines, run_audit = noted(name)
    del lines[5]
    figures = run_audit()
    assert figures["missing"] == figures["differing"] == 1


def test_a_broken_sample_that_nobody_noticed_is_unnamed(noted):
    lines, run_audit = noted("plain")
    for line in lines:
        for number, *_ in line["bad"]:
            line["ids"][line["repeats"].index(-1)] = number
            line["repeats"][line["repeats"].index(-1)] = 0
        line["bad"] = []
    assert run_audit()["unnamed"] > 0


def test_a_micro_batch_done_again_with_other_samples_ends_the_audit(noted):
    lines, run_audit = noted("plain")
    again = json.loads(json.dumps(lines[3]))
    again["ids"][0] += 1
    lines.append(again)
    with pytest.raises(SystemExit, match="made of other samples when it was done again"):
        run_audit()
