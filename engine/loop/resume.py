"""Where a run goes on: the newest whole checkpoint of its folder, or one of another run to branch from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.checkpoint.store import Checkpoint, CheckpointStore, open_checkpoint
from engine.distributed.engine import Engine
from engine.errors import UserError

SAME_DATA = ("manifest_digest", "shards_per_folder")
"""What a checkpoint says of its data that may not change in a run."""


def find_checkpoint(
    store: CheckpointStore, *, engine: Engine, branch_from: Path | None, describe: Mapping[str, Any]
) -> Checkpoint | None:
    """Return the checkpoint to go on from, None at the start; rank 0 chooses and checks it for all (collective).

    Raises:
        UserError: it is the run's own and was trained on other data than ``describe`` says.
    """
    found: Path | None = None
    if engine.is_main:
        newest = store.latest()
        found = newest.path if newest is not None else branch_from
    found = engine.broadcast_object(found)
    if found is None:
        store.go_on_from(None)
        return None
    checkpoint = open_checkpoint(found, verify=engine.is_main)
    own = found.parent == store.folder
    store.go_on_from(checkpoint.step if own else None)
    if own:
        _check_same_data(checkpoint, describe)
    return checkpoint


def _check_same_data(checkpoint: Checkpoint, describe: Mapping[str, Any]) -> None:
    """Refuse to go on with other samples; where they lie may change."""
    for name in SAME_DATA:
        stored, asked = checkpoint.state.get(name), describe.get(name)
        if stored is not None and stored != asked:
            raise UserError(
                f"{checkpoint.path} was trained on other data than data.shards: {name.replace('_', ' ')} stored {stored}, "
                f"asked {asked}; give the folders with the same content in the same order, another --run.folder, or "
                f"start a new run from this checkpoint with --run.branch-from"
            )
