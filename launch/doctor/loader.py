"""Whether the shards are there, and whether the loader feeds what trains."""

import os

from data.commands.bench import measure
from data.loading.loader import PREFETCHED_PER_WORKER, SHARED_MEMORY, free_shared_bytes
from data.shards.shard_set import open_shards
from engine.errors import UserError
from launch.doctor.findings import Finding, judged
from pretrain.config import PretrainConfig

IMAGES = 128


def check_loader(config: PretrainConfig, *, processes_per_node: int, gpu_images_per_s: float | None) -> list[Finding]:
    """Read and crop some images on one core of this node, and compare all its loader workers with a GPU's need."""
    memory = check_shared_memory(config, processes_per_node=processes_per_node, free_bytes=free_shared_bytes())
    try:
        shards = open_shards(config.data.shards[0], cache=config.data.cache)
        figures = measure(shards, num_images=IMAGES, size=config.backbone.img_size[0], decode=config.data.decode)
    except (UserError, OSError) as error:
        advice = "check --data.shards, and that every node mounts it"
        return [*memory, judged("shards", " ".join(str(error).split()), fail=True, advice=advice)]
    cores = len(os.sched_getaffinity(0))
    workers = max(1, config.data.workers)
    per_process = figures["images_per_s_per_core"] * min(workers, max(1, cores // processes_per_node))
    need = f", a GPU takes {gpu_images_per_s:.0f}" if gpu_images_per_s else ""
    return [
        *memory,
        judged("shards", f"{len(shards.manifest.shards)} shards, {shards.manifest.num_samples} samples"),
        judged(
            "loader",
            f"{per_process:.0f} images/s per process with {workers} workers on {cores} cores of the node{need}",
            warn=gpu_images_per_s is not None and per_process < gpu_images_per_s,
            fail=bool(figures["bad_images"]),
            advice="more cores (--cluster.cpus-per-node) and --data.workers, --data.decode scaled, smaller images in "
            "the shards; broken images: `data/main.py verify`",
        ),
        judged(
            "loader workers",
            f"{processes_per_node} x {workers} workers and {processes_per_node} training processes on {cores} cores",
            warn=processes_per_node * (workers + 1) > cores,
            advice="ask for more cores (--cluster.cpus-per-node) or fewer --data.workers",
        ),
    ]


def check_shared_memory(config: PretrainConfig, *, processes_per_node: int, free_bytes: int | None) -> list[Finding]:
    """Compare the room for micro-batches on their way from workers to trainers with what they take at most."""
    if free_bytes is None or not config.data.workers:
        return []
    height, width = config.backbone.img_size
    batch_bytes = 3 * height * width * config.data.micro_batch_size
    in_flight = processes_per_node * (config.data.workers * PREFETCHED_PER_WORKER + 1)
    return [
        judged(
            "shared memory",
            f"{free_bytes / 2**20:.0f} MiB free in {SHARED_MEMORY}, {in_flight} micro-batches on their way take "
            f"{in_flight * batch_bytes / 2**20:.0f} MiB",
            fail=free_bytes < in_flight * batch_bytes,
            warn=free_bytes < 2 * in_flight * batch_bytes,
            advice="enlarge it (docker run --shm-size 8g; a container's /dev/shm is 64 MiB by default), or use fewer "
            "--data.workers",
        )
    ]
