"""A model that keeps its cache in states, run like the portable graph: the cache goes in and comes out."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from qcompile.backends.decoder_caches import Cache
from qcompile.backends.openvino.caches import BEAMS, state_of
from qcompile.backends.openvino.runtime import openvino, runtime_errors
from qcompile.backends.openvino.session import OpenVinoSession
from qcompile.errors import InputError
from qcompile.session import Feed

if TYPE_CHECKING:
    import openvino as ov


@dataclasses.dataclass(frozen=True)
class StatefulSession:
    """Runs feeds that hold the cache, and returns it. Not for two threads at once.

    Attributes:
        inner: the loaded model; its inputs are those of the portable graph without the cache, and beam_idx.
        caches: the states, by the names that they have in the portable graph.
    """

    inner: OpenVinoSession
    caches: tuple[Cache, ...]

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Run the model: input name -> array, to output name -> array.

        Raises InputError for a missing or unknown input, a wrong type or shape, and when a kernel refuses the values.
        """
        pasts = {cache.past: feed[cache.past] for cache in self.caches if cache.past in feed}
        if len(pasts) < len(self.caches):
            missing = next(cache.past for cache in self.caches if cache.past not in pasts)
            raise InputError(f"input {missing!r}", "the feed does not have it", "Give the cache; its length may be 0")
        rest = {name: array for name, array in feed.items() if name not in pasts}
        batch = len(next(iter(pasts.values())))
        states = {state.name: state for state in self.inner.request.query_state()}
        try:
            for cache in self.caches:
                _set(states[state_of(cache)], pasts[cache.past])
        except runtime_errors() as error:
            raise InputError(f"cache of {batch} rows", f"OpenVINO refuses it: {error}", "Check the shapes") from error
        outputs = self.inner.run({**rest, BEAMS: np.arange(batch, dtype=np.int32)})
        return outputs | {cache.present: np.array(states[state_of(cache)].state.data) for cache in self.caches}


def _set(state: ov.VariableState, past: np.ndarray) -> None:
    """Give a state its numbers; an empty one is reset: OpenVINO takes no tensor of length 0 for it."""
    state.reset()
    if past.shape[2]:
        state.state = openvino().Tensor(np.ascontiguousarray(past, dtype=np.float32))
