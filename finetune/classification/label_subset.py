"""Which labels a run may use: a seeded list, the same for the same shards and seed."""

import numpy as np
import numpy.typing as npt

from engine.errors import UserError
from engine.randomness import stream


def choose_labelled(
    labels: npt.NDArray[np.int64], *, seed: int, fraction: float = 1.0, per_class: int | None = None
) -> npt.NDArray[np.int64]:
    """Return the sorted numbers of the samples to train on, drawn within each class.

    A smaller choice is part of a larger one with the same seed. A fraction leaves at least one sample of each class.

    Args:
        labels: every sample's class.
        seed: the run's seed.
        fraction: share of each class.
        per_class: samples of each class, instead of a share.

    Raises:
        UserError: a class has fewer samples than ``per_class``.
    """
    chosen: list[npt.NDArray[np.int64]] = []
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label)
        wanted = max(1, round(fraction * len(members))) if per_class is None else per_class
        if wanted > len(members):
            raise UserError(
                f"task.labels-per-class asks for {wanted} samples of class {label}, which has {len(members)}; ask for fewer"
            )
        chosen.append(stream(seed, "labels", label).permutation(members)[:wanted])
    return np.sort(np.concatenate(chosen)).astype(np.int64)
