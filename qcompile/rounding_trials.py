"""What a model computes with some of its weights rounded: one session, which gets the weights with each run."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from qcompile.calibration import Calibrator
from qcompile.outputs import Outputs, farthest_cosine, is_numeric, without_padding
from qcompile.session import Feed, Session
from qcompile.solvers.sqnr import powers

_SAMPLES = 2
"""Samples of the calibration data that the model is run on for each trial."""

_LOST = 1e9
"""Relative error that stands for one that is not finite."""


class RoundingTrials:
    """Runs a model with weights in the place of its own; a session for each weight took 14 times as long (MiniLM).

    Args:
        model: is not changed.
        weights: name -> what the model has, float32 [inputs, outputs].
        calibrator: of the data; padding does not count.
    """

    def __init__(self, model: ir.Model, weights: Mapping[str, np.ndarray], calibrator: Calibrator) -> None:
        self._weights, self._calibrator = weights, calibrator
        self._feeds = list(itertools.islice(calibrator.samples(model), _SAMPLES))
        self._masks = calibrator.masks(model)
        self._session: Session | None = calibrator.open_session(_fed_with(model, weights))
        self._exact = self._outputs(self._session, weights)

    def noise(self, rounded: Mapping[str, np.ndarray]) -> list[float]:
        """Return the noise over the power of each floating output with some weights rounded."""
        assert self._session is not None
        found = self._outputs(self._session, {**self._weights, **rounded})
        names = [name for name, array in self._exact[0].items() if array.dtype.kind == "f"]
        sides = (
            [np.concatenate([each[name].ravel() for each in side]) for name in names] for side in (self._exact, found)
        )
        return [relative(*powers(one, other)) for one, other in zip(*sides, strict=True)]

    def drop(self, rounded: Mapping[str, np.ndarray]) -> float:
        """Return 1 - cosine to the outputs of the model, of the output that is farthest, with some weights rounded."""
        assert self._session is not None
        return self._drop(self._outputs(self._session, {**self._weights, **rounded}))

    def drop_of(self, model: ir.Model) -> float:
        """Return the same of another model; with it, or `close`, trials of weights end."""
        self.close()
        return self._drop(self._outputs(self._calibrator.open_session(model), {}))

    def close(self) -> None:
        """Let go of the weights; what the model computes with them is kept."""
        self._session, self._weights = None, {}

    def _drop(self, found: Outputs) -> float:
        if not any(map(is_numeric, self._exact[0].values())):
            return 0.0
        return 1 - farthest_cosine(self._exact, found)

    def _outputs(self, session: Session, weights: Feed) -> Outputs:
        found = [session.run({**feed, **weights}) for feed in self._feeds]
        return without_padding(found, self._feeds, self._masks)


def relative(power: float, noise: float) -> float:
    """Return noise over power; a large number where that is not finite."""
    ratio = noise / power if power > 0 else 0.0
    return ratio if np.isfinite(ratio) else _LOST


def _fed_with(model: ir.Model, names: Iterable[str]) -> ir.Model:
    """Return a copy of a model that has these weights as inputs."""
    given = model.clone()
    for name in names:
        weight = given.graph.initializers.pop(name)
        weight.const_value = None
        given.graph.inputs.append(weight)
    return given
