"""Fault drills: images that do not decode, shards truncated, missing or replaced. Each describes its result."""

import re
import shutil
from pathlib import Path

from benchmarks.drills.drill import BATCH, NUM_SAMPLES, PER_SHARD, STEPS, Drill, expect
from benchmarks.drills.faults.faulty_server import FaultyServer
from benchmarks.drills.faults.faulty_shards import DAMAGES, copy_tars, jpeg_bomb, png_bomb, replace_images

BROKEN = (5, 40, 101, 170, 222, 303)
BOMBS = (7, 200)
MOST_MORE_MIB = 150.0  # over a sound run; unrefused, a bomb takes 1100


def corrupt_pictures(drill: Drill) -> str:
    """2 % of the images, broken in six ways: trained around, named and counted, and refused past the limit."""
    shards = copy_tars(drill.sound, drill.folder / "shards")
    replace_images(shards, dict(zip(BROKEN, DAMAGES, strict=True)))
    drill.data("index", "--source", shards, "--out", shards).expect_sound()
    drill.pretrain(shards).expect_sound()
    _expect_replaced(drill, BROKEN)
    verified = drill.data("verify", "--shards", shards, "--full")
    verified.expect_error(f"{len(BROKEN)} problems")
    named = re.findall(r"^problem: sample (\d+) ", verified.output, re.MULTILINE)
    expect([int(key) for key in named] == list(BROKEN), f"verify names {named}")
    drill.data("write", "--source", shards, "--out", drill.folder / "written").expect_sound()
    left_out = (drill.folder / "written" / "bad.jsonl").read_text().splitlines()
    expect(len(left_out) == len(BROKEN), f"write left out {left_out}")
    limit = ("--data.max-bad-share", "0.005")  # of 1000 at least
    drill.pretrain(shards, *limit, run="limited").expect_error("6 of the", "more than data.max-bad-share 0.005 allows")
    return (
        f"{len(BROKEN)} of {NUM_SAMPLES} replaced, named once and counted, the rest as ever; "
        "the 6th stops where 5 are allowed"
    )


def image_bombs(drill: Drill) -> str:
    """A JPEG and a PNG of few bytes that claim 400 and 900 million pixels: refused from the header."""
    shards = copy_tars(drill.sound, drill.folder / "shards")
    replace_images(shards, dict(zip(BOMBS, (jpeg_bomb, png_bomb), strict=True)))
    drill.data("index", "--source", shards, "--out", shards).expect_sound()
    checked = drill.data("verify", "--shards", shards, "--full", "--processes", "1")
    checked.expect_error("2 problems", "pixels are more than the")
    ended = drill.pretrain(shards).expect_sound()
    _expect_replaced(drill, BOMBS)
    reasons = [line["reason"] for line in drill.trained().ledger]
    expect(all("pixels" in reason for reason in reasons), f"refused for other reasons: {reasons}")
    more = ended.peak_mib - drill.reference_mib
    expect(more < MOST_MORE_MIB, f"{more:.0f} MiB more memory than a sound run")
    expect(checked.peak_mib < drill.reference_mib, f"verify took {checked.peak_mib:.0f} MiB")
    return f"both replaced and named, verify refuses; {more:+.0f} MiB beside a sound run's {drill.reference_mib:.0f}"


def truncated_tar(drill: Drill) -> str:
    """A tar that a copy left half: named by `index`, `verify` and training, which replaces nothing."""
    shards, lost = _copy(drill), _late_shard(drill)
    tar = shards / f"shard-{lost:06d}.tar"
    with tar.open("r+b") as file:
        file.truncate(tar.stat().st_size * 3 // 5)
    drill.data("index", "--source", shards, "--out", drill.folder / "indexed").expect_error(tar.name, "truncated?")
    expect(not (drill.folder / "indexed" / "manifest.json").exists(), "index wrote a manifest all the same")
    drill.data("verify", "--shards", shards).expect_error("1 problems", tar.name)
    drill.pretrain(shards).expect_error(tar.name, "truncated or replaced", "the manifest says")
    expect(not drill.trained().ledger, "samples of a truncated tar were replaced")
    return "index, verify and training stop and name it; nothing replaced"


def missing_shard(drill: Drill) -> str:
    """A shard that is gone stops the run; brought back, the same command ends as if nothing had been."""
    shards, lost = _copy(drill), _late_shard(drill)
    tar = shards / f"shard-{lost:06d}.tar"
    away = tar.rename(drill.folder / "away.tar")
    drill.data("verify", "--shards", shards).expect_error("1 problems", f"{tar.name} is missing")
    drill.pretrain(shards, "--run.save-every-steps", "2").expect_error(f"the shard {tar} is missing")
    reached = max(step for step, _ in drill.trained().losses)
    expect(0 < reached < STEPS, f"it stopped after step {reached}")
    away.rename(tar)
    drill.pretrain(shards, "--run.save-every-steps", "2").expect_sound()
    drill.expect_reference()
    return f"stopped after step {reached} of {STEPS}; brought back, the run ended with the losses of a sound one"


def swapped_shard(drill: Drill) -> str:
    """A shard whose bytes changed while its size did not: found by `verify`, refused by the cache of remote shards."""
    shards = _copy(drill)
    tar = shards / "shard-000003.tar"
    content = bytearray(tar.read_bytes())
    content[len(content) // 2] ^= 1
    tar.write_bytes(content)
    drill.data("verify", "--shards", shards, "--decode", "0").expect_error(f"{tar.name} has changed: sha256")
    with FaultyServer(shards) as server:
        drill.pretrain(server.url).expect_error(tar.name, "sha256", "not the file of the manifest")
    expect(not drill.trained().ledger, "samples of another tar were replaced")
    return "one bit: verify finds it, and the cache refuses the shard and stops the run"


def rotten_index(drill: Drill) -> str:
    """An index whose numbers point anywhere: an error that names it, whatever is read of the shard."""
    shards = _copy(drill)
    for path in shards.glob("*.idx"):
        content = bytearray(path.read_bytes())
        content[64 + 46 :: 48] = b"\xff" * len(content[64 + 46 :: 48])  # the records' extensions, and what follows
        path.write_bytes(content)
    drill.pretrain(shards).expect_error(".idx", "make it again")
    drill.data("verify", "--shards", shards).expect_error(".idx has changed: sha256")
    return "training and verify stop and name it"


def _copy(drill: Drill) -> Path:
    return Path(shutil.copytree(drill.sound, drill.folder / "shards"))


def _late_shard(drill: Drill) -> int:
    """Find the shard that training comes to last."""
    assert drill.reference is not None
    first = dict[int, int]()
    for (step, _, _), (number, *_) in sorted(drill.reference.places.items()):
        first.setdefault(int(number) // PER_SHARD, step)
    return max(first, key=lambda shard: first[shard])


def _expect_replaced(drill: Drill, numbers: tuple[int, ...]) -> None:
    """Insist that just these samples were replaced, named with their shard and counted, and nothing else changed."""
    assert drill.reference is not None
    trained, expected = drill.trained(), drill.reference.places
    where = {int(sample[0]): place for place, sample in expected.items()}
    named = {line["id"]: (line["step"], line["micro_batch"], Path(line["shard"]).name) for line in trained.ledger}
    expected_lines = {n: (*where[n][:2], f"shard-{n // PER_SHARD:06d}.tar") for n in numbers}
    expect(named == expected_lines, f"the ledger names {named}, expected {expected_lines}")
    expect(len(trained.ledger) == len(numbers) and all(line["reason"] for line in trained.ledger), f"{trained.ledger}")
    expect(trained.num_bad == len(numbers), f"the metrics count {trained.num_bad}")
    expect(len(trained.losses) == STEPS and len(trained.places) == STEPS * BATCH, "steps are missing")
    changed = {place for place, sample in trained.places.items() if sample != expected[place]}
    expect(changed == {where[n] for n in numbers}, f"other places changed: {sorted(changed)}")
