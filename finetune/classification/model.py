"""The network of a run: backbone, classifier, and what of them is trained."""

from dataclasses import replace

from torch import nn

from engine.distributed.batch_norm import step_batch_norm
from finetune.classification.head import add_probe_norm, classifier_name
from finetune.config import FinetuneConfig
from finetune.network.freezing import freeze
from finetune.network.start import Start, build_network


def build_trained(config: FinetuneConfig, *, start: Start, num_classes: int) -> nn.Module:
    """Return the network with its first weights, ready to be trained by the run's method."""
    linear = config.task.method == "linear"
    drop_path = 0.0 if linear else config.backbone.drop_path
    network = build_network(start, num_classes=num_classes, drop_path=drop_path, seed=config.run.seed)
    classifier_name(network)
    if linear:
        network = add_probe_norm(network)
    freeze(network, what="backbone" if linear else config.task.freeze)
    return network


def build_plain(start: Start, *, method: str, num_classes: int) -> nn.Module:
    """Return the same network with random weights, to load others into."""
    network = build_network(replace(start, folder=None), num_classes=num_classes)
    return step_batch_norm(add_probe_norm(network)) if method == "linear" else network
