"""How much accuracy a compilation may cost, and how that is measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy as np

from qcompile.errors import RecipeError, UserCode
from qcompile.session import Feed

Run = Callable[[Feed], dict[str, np.ndarray]]
Metric = Callable[[Run], float]
DropType = Literal["absolute", "relative"]


@dataclasses.dataclass(frozen=True)
class AccuracyBudget:
    """How much of a metric a compilation may cost: what `compile` holds by keeping as few layers float as it can find.

    Attributes:
        max_drop: most that the metric of the artifact may be below that of the float model.
        metric: is called with `run(feed) -> outputs`, which computes a model on the runtime of the backend: input name
            -> array, to output name -> array. Returns a number, higher is better. Called for the float model and for
            every trial, it must use the same data each time. None: the mean cosine between the outputs and those of the
            float model, which has 1, over a few calibration samples; of the output that is farthest.
        drop_type: max_drop is "absolute", or "relative": a part of the metric of the float model.
        max_trials: most artifacts that are tried, besides the one with all layers in float, which is tried where no
            other was found to hold.

    Raises:
        RecipeError: an attribute has another type or is out of range.
    """

    max_drop: float
    metric: Metric | None = None
    drop_type: DropType = "absolute"
    max_trials: int = 32

    def __post_init__(self) -> None:
        drop: Any = self.max_drop  # whatever the user gave
        trials: Any = self.max_trials
        metric: Any = self.metric
        if isinstance(drop, bool) or not isinstance(drop, int | float) or not 0 <= drop < math.inf:
            raise RecipeError(f"max_drop {drop!r}", "it is not a number from 0 on", "Give one, such as 0.01")
        if metric is not None and not callable(metric):
            reason = f"it is a {type(metric).__name__}"
            raise RecipeError("metric", reason, "Give a function that takes run and returns a number")
        if self.drop_type not in get_args(DropType):
            known = " or ".join(get_args(DropType))
            raise RecipeError(f"drop_type {self.drop_type!r}", "there is no such type", f"Use {known}")
        if isinstance(trials, bool) or not isinstance(trials, int) or trials < 1:
            raise RecipeError(f"max_trials {trials!r}", "it is not a whole number from 1 on", "Give one, such as 32")

    @classmethod
    def of(cls, accuracy: AccuracyBudget | Mapping[str, Any] | None) -> AccuracyBudget | None:
        """Return the budget that a mapping of its attributes describes; a budget, or None, as it is.

        Raises:
            RecipeError: the mapping has another key, no max_drop or a wrong value, or the argument has another type.
        """
        if accuracy is None or isinstance(accuracy, cls):
            return accuracy
        mend = 'Write accuracy={"max_drop": 0.01, "metric": function}'
        if not isinstance(accuracy, Mapping):
            raise RecipeError("accuracy", f"it is a {type(accuracy).__name__}", mend)
        known = [field.name for field in dataclasses.fields(cls)]
        for key in accuracy:
            if key not in known:
                raise RecipeError(f"accuracy[{key!r}]", "there is no such key", f"Use some of {', '.join(known)}")
        if "max_drop" not in accuracy:
            raise RecipeError("accuracy", "it has no max_drop", mend)
        return cls(**accuracy)

    def lowest(self, float_score: float) -> float:
        """Return the lowest score that holds the budget."""
        return float_score - self.max_drop * (abs(float_score) if self.drop_type == "relative" else 1)


def score(metric: Metric, run: Run) -> float:
    """Return what the metric finds for a model; NaN stays NaN.

    Raises:
        RecipeError: the metric raised an error, or returned no number; an error of qcompile passes as it is.
    """
    mend = "Mend that code; it is given run, a function from {input: array} to {output: array}"
    with UserCode("it", lambda reason: RecipeError("metric", reason, mend)):
        found: Any = metric(run)
    returned, wanted = f"it returned a {type(found).__name__}", "Return one real number, higher is better"
    if isinstance(found, str | bytes | bytearray | complex | np.complexfloating):  # float() takes texts of digits
        raise RecipeError("metric", returned, wanted)
    with UserCode(f"{returned}, and making a number of it", lambda reason: RecipeError("metric", reason, wanted)):
        return float(found)
