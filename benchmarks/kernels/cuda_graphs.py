"""A step recorded as one CUDA graph: what launching kernel by kernel costs."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

WARM_UP = 3


def recorded(step: Callable[[], Tensor], model: nn.Module) -> Callable[[], Tensor]:
    """Record ``step`` (forward and backward on tensors that stay where they are); each call clears the gradients.

    The loss that it returns and the gradients of ``model`` lie at the same addresses each time.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is compiled and chosen at first is not recorded
        for _ in range(WARM_UP):
            model.zero_grad(set_to_none=True)
            step()
    torch.cuda.current_stream().wait_stream(side)
    model.zero_grad(set_to_none=False)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model.zero_grad(set_to_none=False)
        loss = step().detach()  # its graph would keep what belongs to the recording alive

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay
