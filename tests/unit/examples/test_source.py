"""A source of images from outside the packages, used as an outsider would: named on the command line of `write`."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.images.decode import decode_rgb
from data.shards.shard_set import open_shards

ROOT = Path(__file__).resolve().parents[3]
SOURCE = ROOT / "examples" / "extensions" / "source.py"
NUM_FRAMES = 4


def frames(count, *, size=(40, 56)):
    return [Image.fromarray(np.full((*size, 3), 10 + 40 * number, np.uint8)) for number in range(count)]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    first, *others = frames(NUM_FRAMES)
    first.save(folder / "a.gif", save_all=True, append_images=others)
    first.save(folder / "deep" / "b.tiff", save_all=True, append_images=others)
    (folder / "broken.gif").write_bytes((folder / "a.gif").read_bytes()[:30])
    return folder


def write(source, out, *options):
    words = [sys.executable, ROOT / "data" / "main.py", "write", "--extension", SOURCE, "--format", "frames"]
    words += ["--source", source, "--out", out, "--processes", 2, *options]
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, cwd=out.parent, check=False)


def test_each_frame_is_a_sample_and_what_is_broken_is_in_the_ledger(folder, tmp_path):
    out = tmp_path / "out"
    written = write(folder, out, "--no-shuffle")
    assert written.returncode == 0, written.stderr
    shards = open_shards(out)
    samples = [shards.read(0, position) for position in range(shards.num_samples)]
    assert len(samples) == 2 * NUM_FRAMES
    pixels = [decode_rgb(sample.image) for sample in samples]
    assert all(image.shape == (40, 56, 3) for image in pixels)
    assert [round(image.mean() / 10) * 10 for image in pixels] == [10, 50, 90, 130] * 2
    lines = [json.loads(line) for line in (out / "bad.jsonl").read_text().splitlines()]
    assert [line["source"] for line in lines] == [f"{folder / 'broken.gif'}#0"]
    assert "is complete already" in write(folder, out, "--no-shuffle").stdout


def test_frames_are_shrunk_and_limited_as_other_images_are(folder, tmp_path):
    out = tmp_path / "out"
    assert write(folder, out, "--size", 32).returncode == 0
    with Image.open(io.BytesIO(open_shards(out).read(0, 0).image)) as image:
        assert (image.format, image.size) == ("JPEG", (45, 32))
    refused = write(folder, tmp_path / "none", "--max-pixels", 1000)
    assert refused.returncode == 1
    assert "no readable image: 9 files were tried" in refused.stderr
    assert "40x56 pixels, at most 1000" in refused.stderr


def test_a_folder_without_frames_and_a_kind_that_nobody_registered_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert (
        f"{tmp_path / 'empty'} holds no sample of --format frames" in write(tmp_path / "empty", tmp_path / "out").stderr
    )
    words = [sys.executable, ROOT / "data" / "main.py", "write", "--format", "frames", "--source", "x", "--out", "y"]
    known = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert known.returncode == 2
    assert "frames" in known.stdout + known.stderr


def test_it_is_one_short_file():
    assert len(SOURCE.read_text().splitlines()) <= 60
