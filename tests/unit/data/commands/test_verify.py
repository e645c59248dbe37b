"""What a check of a data set finds."""

import hashlib
import json

from data.commands.class_counts import class_counts
from data.commands.verify import verify
from data.writing.writer import NewSample, ShardLimits, write_shards


def test_a_sound_data_set_passes(write, tmp_path):
    shards = write()
    findings = verify(tmp_path / "shards", num_decoded=None)
    assert findings.passed
    assert (findings.num_shards, findings.num_samples, findings.num_digests, findings.num_decoded) == (5, 23, 5, 23)
    assert findings.counts == class_counts(shards) == {"a": 8, "b": 8, "c": 7}
    assert not findings.warnings
    assert verify(tmp_path / "shards", num_decoded=4).num_decoded == 4
    assert verify(tmp_path / "shards", num_decoded=0, digests=False).num_digests == 0


def test_images_that_do_not_decode_are_named(write, tmp_path):
    write(broken={7})
    findings = verify(tmp_path / "shards", num_decoded=None)
    assert len(findings.problems) == 1
    assert findings.problems[0].startswith("sample 000007 of shard-000001.tar does not decode")


def test_changed_missing_and_unreadable_files_are_problems(write, tmp_path):
    write()
    folder = tmp_path / "shards"
    tar = bytearray((folder / "shard-000000.tar").read_bytes())
    tar[600] ^= 1
    (folder / "shard-000000.tar").write_bytes(tar)
    (folder / "shard-000001.tar").unlink()
    (folder / "shard-000002.idx").write_bytes(b"x" * 100)
    findings = verify(folder)
    assert [
        words in problem
        for words, problem in zip(
            ["tar has changed", "tar is missing", "idx has changed"], findings.problems, strict=True
        )
    ] == [True] * 3
    assert findings.num_decoded == 8
    lenient = verify(folder, digests=False)
    assert ["missing" in problem or "no shard index" in problem for problem in lenient.problems] == [True, True]


def test_missing_labels_and_shared_keys_are_warnings(write, tmp_path):
    write()
    folder = tmp_path / "shards"
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"].append(manifest["shards"][4])
    manifest["classes"] = ["a", "b", "c", "d"]
    index = bytearray((folder / "shard-000003.idx").read_bytes())
    index[64 + 16 : 64 + 24] = b"\xff" * 8
    (folder / "shard-000003.idx").write_bytes(index)
    manifest["shards"][3]["index_sha256"] = hashlib.sha256(index).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    findings = verify(folder)
    assert findings.passed
    assert (findings.num_unlabelled, findings.num_duplicate_keys) == (1, 6)
    assert len(findings.warnings) == 3


def test_class_numbers_beyond_the_classes_are_problems(write, tmp_path):
    write()
    path = tmp_path / "shards" / "manifest.json"
    path.write_text(path.read_text().replace('["a", "b", "c"]', '["a", "b"]'))
    assert "7 samples have a class number of 2 or more" in verify(tmp_path / "shards").problems


def test_several_processes_find_the_same(write, tmp_path):
    write(40, broken={7, 31})
    (tmp_path / "shards" / "shard-000002.tar").unlink()
    seen = []

    def watch(results, total):
        for result in results:
            seen.append(total)
            yield result

    alone = verify(tmp_path / "shards", num_decoded=None)
    assert verify(tmp_path / "shards", num_decoded=None, processes=2, watch=watch) == alone
    assert len(alone.problems) == 3
    assert seen == [35] * 35


def test_a_data_set_without_labels_but_with_names_is_not_short_of_labels(encoded, tmp_path):
    samples = [NewSample(source="x", members={"jpg": encoded(n), "json": b"{}"}) for n in range(3)]
    write_shards(samples, out=tmp_path, classes=("a", "b"), limits=ShardLimits())
    findings = verify(tmp_path)
    assert (findings.num_unlabelled, findings.counts, findings.warnings) == (0, {}, [])
