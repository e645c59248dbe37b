"""Tells shards that are sorted by class from shards whose samples were shuffled before they were written.

Shuffling within a window of shards cannot mix what lies further apart than the window. The test is Mantel's: count the
pairs of samples that share both their shard and their class. Were the samples dealt to the shards in random order, that
count would have a mean and a variance that are known exactly.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from data.shards.index import UNLABELLED

LEAST_DEVIATIONS = 6.0
LEAST_RATIO = 1.25


@dataclass(frozen=True, kw_only=True)
class ClassMix:
    """How well classes are mixed over shards."""

    in_shard: float
    """Effective number of classes in a shard: 1 / (chance that two samples of the same shard share their class)."""
    overall: float
    """The same of any two samples."""
    deviations: float
    """By how many standard deviations more pairs share both than in a random order."""

    @property
    def is_sorted(self) -> bool:
        """Whether shards hold far fewer classes than chance would give them, and it is not chance."""
        return self.deviations > LEAST_DEVIATIONS and self.overall > LEAST_RATIO * self.in_shard

    @property
    def warning(self) -> str:
        """What to tell the user."""
        return (
            f"the shards are sorted by class: two samples of a shard are as alike as if it held {self.in_shard:.1f} "
            f"classes, in a random order it would be {self.overall:.1f}. Shuffling in training reaches over a few "
            "shards only and cannot mend that; write them again with `python data/main.py write --source SHARDS "
            "--out NEW`"
        )


def class_mix(labels: npt.NDArray[np.int64], *, sizes: tuple[int, ...]) -> ClassMix | None:
    """Compare shards of ``sizes`` samples, labelled one after another (-1: none, not counted), with a random order.

    None where there is nothing to compare: fewer than two shards or classes, or as many as samples.
    """
    shards = np.repeat(np.arange(len(sizes)), sizes)[labels != UNLABELLED]
    labels = labels[labels != UNLABELLED]
    per_shard, per_class = np.bincount(shards).tolist(), np.bincount(labels).tolist()
    together = np.unique(shards * (int(labels.max(initial=0)) + 1) + labels, return_counts=True)[1]
    observed = sum(math.comb(count, 2) for count in together.tolist())
    mean, variance = _permutation_moments(per_shard, per_class)
    if not variance or not observed:
        return None
    shard_pairs, class_pairs = _pairs(per_shard), _pairs(per_class)
    return ClassMix(
        in_shard=shard_pairs / observed,
        overall=math.comb(len(labels), 2) / class_pairs,
        deviations=float(observed - mean) / math.sqrt(variance),
    )


def _permutation_moments(shards: list[int], classes: list[int]) -> tuple[Fraction, Fraction]:
    """Mean and variance of the number of pairs that share their group in both partitions of the same samples.

    Pairs of pairs are the same pair, share one sample (3 of them in each triple), or none (3 in each quadruple).
    """
    count = sum(shards)
    if count < 4:
        return Fraction(0), Fraction(0)
    mean = Fraction(_pairs(shards) * _pairs(classes), math.comb(count, 2))
    sharing = Fraction(_paths(shards) * _paths(classes), 3 * math.comb(count, 3))
    disjoint = Fraction(_disjoint(shards) * _disjoint(classes), 3 * math.comb(count, 4))
    return mean, mean + 2 * (sharing + disjoint) - mean**2


def _pairs(sizes: list[int]) -> int:
    return sum(math.comb(size, 2) for size in sizes)


def _paths(sizes: list[int]) -> int:
    """Count the pairs of pairs that share one sample."""
    return sum(size * math.comb(size - 1, 2) for size in sizes if size)


def _disjoint(sizes: list[int]) -> int:
    return math.comb(_pairs(sizes), 2) - _paths(sizes)
