"""The data program: what its commands write and say, and one line with what to do on bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from data.app import main
from data.shards.shard_set import open_shards

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*words, code=0):
        monkeypatch.setattr(sys, "argv", ["data/main.py", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "200")
        if code:
            with pytest.raises(SystemExit) as stop:
                main()
            assert stop.value.code == code
        else:
            main()
        return capsys.readouterr()

    return run


@pytest.fixture(autouse=True)
def quiet_logging():
    """Take away the log handlers that the program sets up."""
    import logging

    before = logging.root.handlers[:]
    yield
    logging.root.handlers[:] = before


def test_scenes_are_written_checked_and_shown(run, tmp_path):
    out = tmp_path / "scenes"
    said = run(
        "write",
        "--source",
        "scenes",
        "--out",
        out,
        "--count",
        20,
        "--size",
        48,
        "--val-fraction",
        0.2,
        "--processes",
        1,
    )
    assert "16 of 16" in said.out
    assert "images/s" in said.out
    assert (open_shards(out / "train").num_samples, open_shards(out / "val").num_samples) == (16, 4)
    assert len(open_shards(out / "val").classes) == 12
    said = run("verify", "--shards", out / "train", "--full", "--json-out", tmp_path / "v.json")
    assert "16 images decoded, 0 problems" in said.out
    assert json.loads((tmp_path / "v.json").read_text())["passed"] is True
    said = run("show", "--shards", out / "val", "--out", tmp_path / "sheet.png")
    assert "striped disc" in said.out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"


@pytest.mark.parametrize("command", ["verify", "show"])
def test_a_manifest_without_samples_is_an_error(run, tmp_path, command):
    (tmp_path / "manifest.json").write_text('{"format": 1, "classes": null, "shards": []}')
    assert "names no sample" in run(command, "--shards", tmp_path, code=1).err


def test_json_that_nests_without_end_and_patterns_elsewhere_are_one_line(run, tmp_path, encoded):
    (tmp_path / "deep.json").write_text("[" * 200_000)
    (tmp_path / "a.jpg").write_bytes(encoded(0))
    (tmp_path / "list.csv").write_text("path,label\na.jpg,0\n")
    out = ("--out", tmp_path / "out")
    said = run("write", "--source", tmp_path / "deep.json", *out, code=1)
    assert "deep.json is no COCO instances file" in said.err
    said = run("write", "--source", tmp_path / "list.csv", "--classes", tmp_path / "deep.json", *out, code=1)
    assert "deep.json: expected JSON, but it is nested too deeply" in said.err
    said = run("index", "--source", tmp_path, "--pattern", "/etc/*", *out, code=1)
    assert "--pattern is of names in" in said.err


def test_shards_are_measured_as_the_page_on_data_says(run, write):
    said = run("bench", write(4).folder, "--images", 4, "--size", 24)
    assert "images/s per core to 24 px" in said.out


def test_without_a_held_out_share_the_folder_itself_holds_the_shards(run, tmp_path, encoded):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(encoded(0))
    run("write", "--source", tmp_path / "in", "--out", tmp_path / "out", "--processes", 1)
    assert open_shards(tmp_path / "out").read(0, 0).image == encoded(0)


def test_class_names_beside_the_tars_are_used(run, write, tmp_path):
    write()
    source = tmp_path / "shards"
    for path in [*source.glob("*.idx"), source / "manifest.json"]:
        path.unlink()
    (source / "classes.json").write_text('["x", "y", "z"]')
    said = run("index", "--source", source, "--out", tmp_path / "index", "--pattern", "shard-00000[01].tar")
    assert "10 samples in 2 shards, 3 classes" in said.out
    assert open_shards(tmp_path / "index").classes == ("x", "y", "z")
    (source / "classes.json").write_text('{"x": 1}')
    assert (
        "must hold a list of class names, got a dict" in run("index", "--source", source, "--out", source, code=1).err
    )


def test_a_finished_command_is_not_done_again_and_another_one_is_refused(run, tmp_path, encoded):
    for number in range(20):
        path = tmp_path / "in" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
    words = ["write", "--source", tmp_path / "in", "--out", tmp_path / "out", "--samples-per-shard", 4]
    said = run(*words, "--processes", 1)
    assert f"{tmp_path / 'in'} is taken as --format folder" in said.out
    manifest = (tmp_path / "out" / "manifest.json").read_bytes()
    assert f"{tmp_path / 'out'} is complete already" in run(*words, "--processes", 2).out
    assert (tmp_path / "out" / "manifest.json").read_bytes() == manifest
    assert "was begun with --seed 0, now it is 1" in run(*words, "--seed", 1, code=1).err
    (tmp_path / "in" / "a" / "0.jpg").unlink()
    assert "was begun with the list of samples" in run(*words, code=1).err


def test_shards_sorted_by_class_are_warned_of_when_written_checked_and_shown(run, tmp_path, encoded):
    for number in range(40):
        path = tmp_path / "in" / "abcd"[number // 10] / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
    words = ["write", "--source", tmp_path / "in", "--samples-per-shard", 5, "--processes", 1]
    warning = "the shards are sorted by class: two samples of a shard are as alike as if it held 1.0 classes"
    assert warning in run(*words, "--out", tmp_path / "sorted", "--no-shuffle").out
    assert warning in run("verify", "--shards", tmp_path / "sorted", "--processes", 1).out
    assert warning in run("show", "--shards", tmp_path / "sorted", "--out", tmp_path / "sheet.png").out
    for path in [*(tmp_path / "sorted").glob("*.idx"), tmp_path / "sorted" / "manifest.json"]:
        path.unlink()
    assert warning in run("index", "--source", tmp_path / "sorted", "--out", tmp_path / "index", "--processes", 1).out
    said = run("write", "--source", tmp_path / "sorted", "--out", tmp_path / "mended", "--samples-per-shard", 5)
    assert "is taken as --format webdataset" in said.out
    assert "sorted by class" not in said.out
    assert open_shards(tmp_path / "mended").num_samples == 40


def test_classes_counts_and_what_was_passed_over_are_said_at_the_end(run, tmp_path, encoded):
    for number in range(8):
        path = tmp_path / "in" / "train" / ("Äpfel", "pears")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
        (path.parent / f"{number}.tif").touch()
    (tmp_path / "in" / "val" / "pears").mkdir(parents=True)
    (tmp_path / "in" / "val" / "pears" / "v.jpg").write_bytes(encoded(9))
    said = run("write", "--source", tmp_path / "in", "--out", tmp_path / "out", "--processes", 1).out
    rows = [line.replace("│", " ").split() for line in said.splitlines()]
    assert ["0", "pears", "4", "1"] in rows
    assert ["1", "Äpfel", "4", "0"] in rows
    assert f"passed over in {tmp_path / 'in'}: 8 .tif (train/)" in said


def test_a_table_is_written_with_a_held_out_share(run, tmp_path, encoded):
    lines = ["path,label"]
    for number in range(20):
        (tmp_path / f"{number}.jpg").write_bytes(encoded(number))
        lines.append(f"{number}.jpg,{'xy'[number % 2]}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    run("write", "--source", tmp_path / "list.csv", "--out", tmp_path / "out", "--val-fraction", 0.2, "--processes", 1)
    train, val = (open_shards(tmp_path / "out" / name) for name in ("train", "val"))
    assert (train.num_samples, val.num_samples, train.classes) == (16, 4, ("x", "y"))
    assert sorted(val.labels().tolist()) == [0, 0, 1, 1]


def test_a_broken_data_set_ends_with_exit_code_1(run, write, tmp_path):
    write(broken={3})
    said = run("verify", "--shards", tmp_path / "shards", code=1)
    assert "problem: sample 000003" in said.out
    assert "has 1 problems, the first: sample 000003" in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["write", "--source", "{tmp}/none", "--out", "{tmp}/o"],
            "but {tmp}/none is missing",
        ),
        (["write", "--source", "{tmp}/empty", "--out", "{tmp}/o"], "no image in {tmp}/empty"),
        (
            ["write", "--source", "{tmp}/text", "--out", "{tmp}/o", "--processes", "1"],
            "no readable image: 1 files were tried",
        ),
        (["write", "--source", "scenes", "--out", "{tmp}/text"], "{tmp}/text is not empty"),
        (
            ["index", "--source", "{tmp}/empty", "--out", "{tmp}/o"],
            "no file in {tmp}/empty matches '*.tar'; it holds nothing",
        ),
        (["index", "--source", "{tmp}/tar", "--out", "{tmp}/o"], "{tmp}/tar/a.tar is no readable tar shard"),
        (
            ["write", "--source", "{tmp}/text", "--out", "{tmp}/o", "--pattern", "x"],
            "--pattern is read with --format webdataset, but {tmp}/text is folder",
        ),
        (
            ["write", "--source", "{tmp}/text/a.jpg", "--out", "{tmp}/o"],
            "or a COCO .json, but {tmp}/text/a.jpg is a file",
        ),
        (
            ["write", "--source", "{tmp}/text", "--out", "{tmp}/o", "--format", "coco"],
            "expected annotations/instances_",
        ),
        (["verify", "--shards", "{tmp}/empty"], "{tmp}/empty has no manifest.json"),
        (["show", "--shards", "{tmp}/none"], "{tmp}/none is no folder"),
    ],
)
def test_bad_input_ends_in_one_line(run, tmp_path, words, message):
    for name, file in (("empty", None), ("text", "a.jpg"), ("tar", "a.tar")):
        (tmp_path / name).mkdir()
        if file:
            (tmp_path / name / file).write_text("hello")
    said = run(*(word.format(tmp=tmp_path) for word in words), code=1).err.splitlines()
    assert said[-1].startswith("error: ")
    assert message.format(tmp=tmp_path) in said[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--val-fraction", "1"], "val-fraction must lie in [0, 1), got 1.0"),
        (["--source", ""], "source is empty: expected a folder or file"),
        (["--class-depth=-1"], "class-depth must be at least 0, got -1"),
        (["--count", "0"], "count must be at least 1, got 0"),
        (["--size", "8"], "size must be at least 32 pixels, got 8"),
        (["--quality", "0", "--size", "64"], "quality must lie in 1 to 100, got 0"),
        (["--quality", "80"], "quality is that of images that --size shrinks"),
    ],
)
def test_impossible_options_are_explained(run, tmp_path, words, message):
    assert message in run("write", "--source", "scenes", "--out", tmp_path / "o", *words, code=2).err


def test_sizes_that_no_memory_holds_are_one_line(run, tmp_path):
    out = run("write", "--source", "scenes", "--out", tmp_path / "s", "--count", 2, "--size", 10**8, code=2).err
    assert "images of size 100000000 have more pixels than max-pixels" in out
    assert "size must be at most" in run("bench", tmp_path, "--size", 10**6, code=2).err


COMMANDS = ("write", "index", "verify", "show", "bench")


def test_help_names_all_commands_and_each_has_its_own_without_torch(tmp_path):
    for words in ([], *([command] for command in COMMANDS)):
        program = [sys.executable, "-X", "importtime", str(ROOT / "data" / "main.py"), *words, "--help"]
        shown = subprocess.run(program, capture_output=True, text=True, check=True, cwd=tmp_path)
        modules = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines() if "|" in line}
        assert not modules & {"torch", "torchvision", "PIL", "fsspec", "simplejpeg"}
        if not words:
            assert all(command in shown.stdout for command in COMMANDS)
        else:
            assert f"data/main.py {words[0]}" in shown.stdout
