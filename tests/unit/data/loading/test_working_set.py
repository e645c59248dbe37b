"""What a cache must hold: computed before step 1, and enough when it is given."""

import pytest

from data.loading.working_set import check_cache, node_micro_batches, usual_working_set_bytes, working_set_bytes
from data.remote.config import CacheConfig
from data.shards.shard_set import open_shards
from tests.unit.data.remote_set import order_of, train, write_set


@pytest.fixture
def local(tmp_path):
    return write_set(tmp_path / "served", count=300, per_shard=5)


def cached(local, tmp_path, **options):
    return open_shards(local.folder, cache=CacheConfig(folder=tmp_path / "cache", local=True, **options))


def test_it_is_the_size_of_the_shards_that_the_next_steps_touch(local):
    order = order_of(local)
    for steps in (16, 150):
        needed = working_set_bytes(local, order, micro_batches=range(2), prefetch_steps=steps)
        touched = {
            shard for step in range(steps) for m in range(2) for shard in order.micro_batch(step, m)[:, 0].tolist()
        }
        assert needed >= 0.9 * sum(local.manifest.shards[shard].size_bytes for shard in touched)
    one = working_set_bytes(local, order_of(local, window_shards=8), micro_batches=range(1))
    two = working_set_bytes(local, order_of(local, window_shards=8), micro_batches=range(2))
    assert 1.5 * one < two < 2.5 * one


def test_a_cache_below_it_is_refused_before_anything_is_read_with_the_size_that_will_do(local, tmp_path):
    with pytest.raises(
        ValueError, match=r"data.cache.gib 0.0001 is too small: .* 2 micro-batches of each step.* take"
    ) as caught:
        train(cached(local, tmp_path, gib=0.0001))
    assert not (tmp_path / "cache").exists()
    enough = float(str(caught.value).split(" take ")[1].split(" GiB")[0])
    assert next(train(cached(local, tmp_path, gib=enough)))["key"] == (0, 0)


def test_all_processes_of_a_node_count(local, tmp_path):
    shards = cached(local, tmp_path, gib=0.0001)
    environment = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    environment |= {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    with pytest.raises(ValueError, match="reads 2 micro-batches of each step"):
        check_cache(shards, order_of(local), micro_batches=range(1, 2), first_step=0, environment=environment)
    assert node_micro_batches(range(6, 8), environment=environment) == range(4, 8)
    assert node_micro_batches(range(6, 8), environment={}) == range(6, 8)
    assert node_micro_batches(range(6, 8), environment={"LOCAL_RANK": "-1"}) == range(6, 8), "no launcher's"


def test_sets_that_are_read_in_place_need_no_cache(local, tmp_path):
    tiny = open_shards(local.folder, cache=CacheConfig(folder=tmp_path / "cache", gib=1e-9))
    check_cache(tiny, order_of(local), micro_batches=range(2), first_step=0, environment={})


def test_verify_names_the_size_for_the_defaults(local):
    assert usual_working_set_bytes(local) >= sum(info.size_bytes for info in local.manifest.shards)
    few = open_shards(local.folder).subset(range(10))
    assert usual_working_set_bytes(few) > 0
