"""Fault drills: data whose maker wants code run or files written. Each describes its result."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

from benchmarks.drills.drill import Drill, expect
from benchmarks.drills.faults.faulty_server import FaultyServer
from benchmarks.drills.faults.faulty_shards import copy_tars, read_tar, write_tar

PICKLED = ("pkl", "pyd", "pickle", "pth", "npy")


class _Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self._path), "w")


def climbing_names(drill: Drill) -> str:
    """A tar with `../` and absolute names and links: keys, and never paths."""
    shards = copy_tars(drill.sound, drill.folder / "shards")
    tar = shards / "shard-000000.tar"
    members = read_tar(tar)
    image, secret = members[0][1], drill.folder / "secret.jpg"
    secret.write_bytes(image)
    names = (
        "../../../escaped-1.jpg",
        f"{drill.folder}/escaped-2.jpg",
        "inside/../../escaped-3.jpg",
        "away/escaped-4.jpg",
    )
    links = {"linked.jpg": str(secret), "away": str(drill.folder)}
    write_tar(tar, [*members, *((name, image) for name in names)], links=links)
    before = set(drill.folder.rglob("*"))
    indexed = drill.data("index", "--source", shards, "--out", shards).expect_sound()
    expect("passed over 2 x links and special files" in indexed.output, f"links: {indexed.output}")
    drill.data("verify", "--shards", shards, "--full").expect_sound()
    drill.data("write", "--source", shards, "--out", drill.folder / "written").expect_sound()
    places = [shards, *(drill.folder / name for name in ("written", "stdout", "stderr"))]
    stray = [path for path in set(drill.folder.rglob("*")) - before if not any(path.is_relative_to(p) for p in places)]
    stray += drill.folder.parent.parent.glob("escaped-*")
    expect(not stray, f"written outside: {stray}")
    return f"{len(names)} climbing names read as samples, 2 links passed over; nothing written outside"


def pipe_url(drill: Drill) -> str:
    """`pipe:touch canary` as the shards, as a source, and as a shard of a manifest, local and remote."""
    url = f"pipe:touch {drill.canary}"
    drill.pretrain(url).expect_error("pipe: cannot be read")
    drill.data("verify", "--shards", url).expect_error("pipe: cannot be read")
    drill.data("write", "--source", url, "--out", drill.folder / "written").expect_error("pipe:")
    shards = _rename_shards(drill, url)
    drill.data("bench", shards).expect_error("pipe: cannot be read")
    with FaultyServer(shards) as server:
        drill.data("verify", "--shards", server.url, "--cache.folder", drill.folder / "cache").expect_error(
            "pipe: cannot be read"
        )
    return "refused as shards, as source and in manifests; no shell run"


def pickle_members(drill: Drill) -> str:
    """Members that make a file when they are unpickled, also under the names of labels and arrays."""
    shards = copy_tars(drill.sound, drill.folder / "shards")
    poison = pickle.dumps(_Touch(drill.canary))
    for tar in sorted(shards.glob("*.tar")):
        members = [(name, content) for name, content in read_tar(tar) if name.endswith(".jpg")]
        stems = [(Path(name).stem, content) for name, content in members]
        others = ("jpg", "cls", *PICKLED)
        write_tar(tar, [(f"{stem}.{e}", content if e == "jpg" else poison) for stem, content in stems for e in others])
    indexed = drill.data("index", "--source", shards, "--out", shards).expect_sound()
    for extension in PICKLED:
        expect(
            f"passed over 320 x .{extension}" in indexed.output, f".{extension} was not passed over: {indexed.output}"
        )
    expect("320 x labels that are no class number" in indexed.output, f"labels: {indexed.output}")
    drill.data("verify", "--shards", shards, "--full").expect_sound()
    drill.data("write", "--source", shards, "--out", drill.folder / "written").expect_sound()
    drill.pretrain(shards).expect_sound()
    drill.expect_reference()
    return f"{len(PICKLED)} kinds passed over and counted, labels left out; trained as ever; nothing unpickled"


def hostile_manifests(drill: Drill) -> str:
    """Manifests that nest without end, count without end, or name files outside."""
    tree = json.loads((drill.sound / "manifest.json").read_text())
    line = tree["shards"][0]
    secret = drill.folder / "secret.tar"
    shutil.copyfile(drill.sound / line["name"], secret)
    manifests = {
        "nested": "[" * 10**6,
        "huge": json.dumps({**tree, "shards": [{**line, "num_samples": 10**40}]}),
        "index": json.dumps({**tree, "shards": [{**line, "index": "../../secret.tar"}]}),
        "outside": json.dumps({**tree, "shards": [{**line, "name": str(secret)}]}),
        "above": json.dumps({**tree, "shards": [{**line, "name": "../secret.tar"}]}),
    }
    reasons = {"outside": "lies outside of its folder", "above": "lies outside of its folder"}
    for name, text in manifests.items():
        folder = drill.folder / name
        folder.mkdir()
        (folder / "manifest.json").write_text(text)
        with FaultyServer(folder) as server:
            ended = drill.data("verify", "--shards", server.url, "--cache.folder", drill.folder / "cache")
        ended.expect_error(reasons.get(name, "is no manifest of this program"))
        expect(ended.peak_mib < drill.reference_mib, f"{name}: {ended.peak_mib:.0f} MiB")
    return f"{len(manifests)} refused, each with one line; no file outside was read"


def _rename_shards(drill: Drill, name: str) -> Path:
    shards = Path(shutil.copytree(drill.sound, drill.folder / "renamed"))
    manifest = json.loads((shards / "manifest.json").read_text())
    for line in manifest["shards"]:
        line["name"] = name
    (shards / "manifest.json").write_text(json.dumps(manifest))
    return shards
