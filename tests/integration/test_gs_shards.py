"""Shards on Google Cloud Storage, with what users run: gcsfs, against an emulator of the service on loopback."""

import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from data.remote.config import CacheConfig
from data.shards.shard_set import open_shards
from tests.unit.data.remote_set import content, train, write_set

pytest.importorskip("gcp_storage_emulator", reason="the emulator of the tests is not installed")


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """A bucket to train from: a function that puts a folder into it and gives its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    monkeypatch.setenv("FSSPEC_GS_TOKEN", "anon")
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    words = ("-m", "gcp_storage_emulator", "start", "--host", "127.0.0.1", "--port", str(port))
    server = subprocess.Popen(
        [sys.executable, *words, "--in-memory", "--default-bucket", "photos"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _wait_for(url)

    def put(folder):
        for path in folder.iterdir():
            where = f"{url}/upload/storage/v1/b/photos/o?uploadType=media&name=set/{path.name}"
            request = urllib.request.Request(where, data=path.read_bytes(), method="POST")
            urllib.request.urlopen(request, timeout=10).close()
        return "gs://photos/set"

    yield put
    server.kill()
    server.wait()


def _wait_for(url):
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{url}/storage/v1/b/photos", timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "the emulator did not start"
            time.sleep(0.1)


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_on_gs_give_the_batches_of_local_ones(tmp_path, bucket, workers, monkeypatch):
    monkeypatch.setattr("data.remote.streams.RANGE_BYTES", 7000)  # several requests a shard
    local = write_set(tmp_path / "local")
    url = bucket(tmp_path / "local")
    remote = open_shards(url, cache=CacheConfig(folder=tmp_path / "cache", gib=1, give_up_s=20, timeout_s=5))
    assert remote.manifest == local.manifest
    assert content(train(remote, workers=workers)) == content(train(local))


def test_a_missing_object_is_named_at_once(tmp_path, bucket):
    write_set(tmp_path / "local")
    (tmp_path / "local" / "shard-000001.tar").unlink()
    url = bucket(tmp_path / "local")
    quick = CacheConfig(folder=tmp_path / "cache", gib=1, give_up_s=20, timeout_s=5)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"gs://.*/shard-000001.tar cannot be read: FileNotFoundError"):
        open_shards(url, cache=quick).read(1, 0)
    assert time.monotonic() - start < 10
