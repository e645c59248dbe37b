"""How processes meet: what keeps them from it, and whether it may pass."""

import pytest
import torch
import torch.distributed as dist

from engine.distributed.launched import Launched
from engine.distributed.processes import join_processes
from engine.errors import PassingError, UserError


@pytest.mark.parametrize(
    ("error", "may_pass"),
    [
        (dist.DistNetworkError("the server socket has failed to bind: EADDRINUSE"), True),
        (dist.DistStoreError("timed out after 300 s, 1/2 clients joined"), True),
        (ValueError("port must have value from 0 to 65535"), False),
    ],
)
def test_whether_processes_may_meet_at_another_start(monkeypatch, error, may_pass):
    def refuse(*_arguments, **_options):
        raise error

    monkeypatch.setattr(dist, "init_process_group", refuse)
    launched = Launched(rank=0, world_size=2, meeting_place="127.0.0.1:1")
    with pytest.raises(UserError, match="the processes cannot meet: ") as raised:
        join_processes(torch.device("cpu"), launched=launched)
    assert isinstance(raised.value, PassingError) == may_pass
