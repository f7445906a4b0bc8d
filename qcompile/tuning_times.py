"""How long models take on a backend: in turns, and twice before float is believed to be faster.

What is counted is the time that the processor spends on the calling thread, and sessions have no other: on a machine
that other programs keep busy three times over, medians of wall time differ by a factor of two from one turn to the
next, and those of processor time by 3% (measured on a model of 6 ms, both runtimes). More threads divide the work of
the integer and of the float form alike.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx_ir as ir

from qcompile.backends import Backend
from qcompile.session import Feed

INTEGER = "integer"
"""The form of layers that needs no reason."""

MARGIN = 0.05
"""Part of the first form's time by which another form must be faster: less is noise on a busy machine."""

LEAST_MS = 0.005
"""The same in milliseconds: timers and calls from Python differ by as much."""

_ROUNDS, _BLOCK = 3, 3
_LONG_SECONDS = 0.05
"""A call that takes longer is made once in a turn: what disturbs it comes and goes within."""


@dataclasses.dataclass(frozen=True)
class Timer:
    """Times models on a backend.

    Attributes:
        engine: the backend, which lowers each model as it would lower it for the user.
        target: processor that it lowers for, or None.
    """

    engine: Backend
    target: str | None

    def milliseconds(
        self, models: Mapping[str, ir.Model], feed_of: Callable[[ir.Model], Feed], first: str = INTEGER
    ) -> dict[str, float]:
        """Return how long each model takes; where one wins over the first form, what it took at its slowest of two.

        All are loaded at once. One is measured a second time only where it seems to win.

        Args:
            models: name of the form -> portable model.
            feed_of: returns the inputs for a model.
            first: name of the form that needs no reason.

        Raises:
            QCompileError: the backend refuses a model.
        """
        with tempfile.TemporaryDirectory(prefix="qcompile-", ignore_cleanup_errors=True) as folder:
            runs = {
                name: self._loaded(model, Path(folder) / str(index), feed_of(model))
                for index, (name, model) in enumerate(models.items())
            }
            found = _in_turns(runs)
            if any(faster(found, name, first) for name in found):
                again = _in_turns(runs)
                found = {name: (min if name == first else max)(found[name], again[name]) for name in found}
        return found

    def _loaded(self, model: ir.Model, folder: Path, feed: Feed) -> Callable[[], object]:
        folder.mkdir()
        lowered = self.engine.lower(model, folder, target=self.target)
        session = self.engine.open_artifact(folder / lowered.model_file, threads=1)
        return lambda: session.run(feed)


def faster(times: Mapping[str, float], form: str, first: str = INTEGER) -> bool:
    """Return True where a form is faster than the first by more than noise."""
    gain = times[first] - times.get(form, times[first])
    return gain > max(LEAST_MS, MARGIN * times[first])


def _in_turns(runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Return the fastest of the medians of some turns, in milliseconds; the first call of a turn does not count."""
    medians: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(_ROUNDS):
        for name, run in runs.items():
            calls = _BLOCK if _seconds(run) < _LONG_SECONDS else 1
            medians[name].append(statistics.median(_seconds(run) for _ in range(calls)))
    return {name: 1000 * min(found) for name, found in medians.items()}


def _seconds(run: Callable[[], object]) -> float:
    start = time.thread_time()
    run()
    return time.thread_time() - start
