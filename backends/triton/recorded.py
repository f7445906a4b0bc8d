"""Work on a card that is recorded once and replayed: no kernel is launched from Python then."""

from __future__ import annotations

from collections.abc import Callable

import torch

_WARM_UP = 3
"""Runs before the record, in which kernels are tuned and torch takes the memory that it keeps."""


def recorded(run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """Return what runs the same kernels on the same tensors, whatever they hold then; without a card `run` itself.

    What it returns is one tensor, which each call writes anew. `run` must not wait for the card, nor take memory that
    hangs on what tensors hold; doing it several times must do no harm.
    """
    if not torch.cuda.is_available():
        return run
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = run()

    def replay() -> torch.Tensor:
        graph.replay()
        return made

    return replay
