"""Training data over the network, with what users run: an S3 server, several trainers on one cache, `verify`."""

import logging
import multiprocessing
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from fsspec.registry import _registry

from data.commands.verify import verify
from data.loading.loader import evaluation_batches
from data.remote.config import CacheConfig
from data.shards.shard_set import open_shards
from tests.unit.data.bad_server import BadServer
from tests.unit.data.remote_set import Digests, content, order_of, train, write_set

pytest.importorskip("moto", reason="the S3 server of the tests is not installed")
s3fs = pytest.importorskip("s3fs", reason="the s3 extra is not installed")

SECRET = "hunter2-secret-key"


@pytest.fixture(scope="module")
def s3_server():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            break
        except OSError:
            assert time.monotonic() < deadline, "moto's server did not start"
            time.sleep(0.1)
    yield server, url
    server.kill()
    server.wait()


@pytest.fixture
def bucket(s3_server, monkeypatch, tmp_path):
    """A bucket for one test alone: its name, and a function that puts a folder there."""
    _, url = s3_server
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr("data.remote.download.FIRST_DELAY_S", 0.01)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"bucket-{tmp_path.name.replace('_', '-').lower()[:40]}"
    store = s3fs.S3FileSystem()
    store.mkdir(name)

    def put(folder):
        for path in folder.iterdir():
            store.pipe_file(f"{name}/set/{path.name}", path.read_bytes())
        return f"s3://{name}/set"

    return put


def cache_in(tmp_path, **options):
    return CacheConfig(**{"folder": tmp_path / "cache", "gib": 1, "give_up_s": 20, "timeout_s": 5, **options})


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_on_s3_give_the_batches_of_local_ones(tmp_path, bucket, workers, caplog, monkeypatch):
    monkeypatch.setattr("data.remote.streams.RANGE_BYTES", 7000)  # several requests a shard
    local = write_set(tmp_path / "local")
    with caplog.at_level(logging.DEBUG, logger="data"):
        remote = open_shards(bucket(tmp_path / "local"), cache=cache_in(tmp_path))
        assert remote.manifest == local.manifest
        assert remote.labels().tolist() == local.labels().tolist()
        assert content(train(remote, workers=workers)) == content(train(local))
        evaluated = evaluation_batches(remote, Digests(), micro_batch_size=7, workers=workers)
        assert content(evaluated) == content(evaluation_batches(local, Digests(), micro_batch_size=7))
    assert SECRET not in caplog.text
    assert not any(SECRET in path.name for path in (tmp_path / "cache").iterdir())


def test_faults_on_s3_are_told_apart(tmp_path, bucket, monkeypatch):
    write_set(tmp_path / "local")
    (tmp_path / "local" / "shard-000001.tar").unlink()
    place = bucket(tmp_path / "local")
    quick = cache_in(tmp_path, give_up_s=1, timeout_s=1)
    with pytest.raises(ValueError, match=r"s3://.*/shard-000001.tar cannot be read: FileNotFoundError"):
        open_shards(place, cache=quick).read(1, 0)
    with pytest.raises(ValueError, match=r"s3://nowhere-to-be-found/set/manifest.json cannot be read"):
        open_shards("s3://nowhere-to-be-found/set", cache=quick)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        s3fs.S3FileSystem.clear_instance_cache()
        start = time.monotonic()
        with pytest.raises(OSError, match="gave up after") as caught:
            open_shards(place, cache=quick)
    assert time.monotonic() - start < 5
    assert SECRET not in str(caught.value)


def test_an_s3_server_that_hangs_for_a_while_delays_and_does_no_more(tmp_path, bucket, s3_server):
    local = write_set(tmp_path / "local")
    remote = open_shards(bucket(tmp_path / "local"), cache=cache_in(tmp_path, timeout_s=0.5))
    server, _ = s3_server
    server.send_signal(signal.SIGSTOP)
    waker = multiprocessing.get_context("fork").Process(target=_wake_later, args=(server.pid,))
    waker.start()
    start = time.monotonic()
    assert remote.read(0, 0).image == local.read(0, 0).image
    assert 1 < time.monotonic() - start < 10
    waker.join()


def _wake_later(process):
    import os

    time.sleep(1.5)
    os.kill(process, signal.SIGCONT)


def test_a_scheme_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(_registry, "gs", raising=False)  # where another test has loaded it
    with pytest.raises(ValueError, match="gs:// needs a package") as caught:
        open_shards("gs://bucket/set")
    assert "pip install -e '.[gs]'" in str(caught.value)


def _train_rank(url, config, rank, results):
    found = content(train(open_shards(url, cache=config), micro_batches=range(rank, rank + 1), workers=1, steps=30))
    results.put((rank, found))


def test_ranks_of_a_node_share_a_cache_and_fetch_each_shard_once(tmp_path):
    local = write_set(tmp_path / "local")
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    with BadServer(tmp_path / "local") as server:
        ranks = [
            context.Process(target=_train_rank, args=(server.url, cache_in(tmp_path), rank, results)) for rank in (0, 1)
        ]
        for rank in ranks:
            rank.start()
        found = dict(results.get() for _ in ranks)
        for rank in ranks:
            rank.join(30)
        tars = [path for path, _ in server.requests if path.endswith(".tar")]
    for rank in (0, 1):
        assert found[rank] == content(train(local, micro_batches=range(rank, rank + 1), steps=30))
    assert len(tars) == len(set(tars)) == len(local.sizes)


def test_verify_checks_remote_sets_and_names_what_is_wrong(tmp_path, bucket):
    local = write_set(tmp_path / "local")
    place = bucket(tmp_path / "local")
    sound = verify(place, num_decoded=0, cache=cache_in(tmp_path))
    assert (sound.problems, sound.num_digests) == ([], len(local.sizes))
    assert sound.working_set_bytes > 0
    (tmp_path / "local" / "shard-000002.tar").write_bytes(b"x" * local.manifest.shards[2].size_bytes)
    shutil.rmtree(tmp_path / "cache")
    broken = verify(bucket(tmp_path / "local"), num_decoded=0, cache=cache_in(tmp_path))
    assert len(broken.problems) == 1
    assert "shard-000002.tar has sha256" in broken.problems[0]


def test_a_local_manifest_may_name_tars_on_a_server(tmp_path):
    local = write_set(tmp_path / "local")
    expected = content(train(local, steps=order_of(local).steps_per_epoch))
    with BadServer(tmp_path / "served") as server:
        (tmp_path / "served").mkdir()
        manifest = (tmp_path / "local" / "manifest.json").read_text()
        for tar in sorted((tmp_path / "local").glob("*.tar")):
            tar.rename(tmp_path / "served" / tar.name)
            manifest = manifest.replace(f'"{tar.name}"', f'"{server.url}/{tar.name}"')
        (tmp_path / "local" / "manifest.json").write_text(manifest)
        mixed = open_shards(tmp_path / "local", cache=cache_in(tmp_path))
        assert content(train(mixed, workers=2, steps=order_of(local).steps_per_epoch)) == expected
