"""How the search for a budget of accuracy ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

_SCORES = ("float_score", "quantized_score", "score")
"""Fields that the metric returned, which may be infinite or NaN."""


@dataclasses.dataclass(frozen=True)
class BudgetReport:
    """What the metric found, and which layers stay float so that it does not drop further.

    Attributes:
        metric: what was measured, in words.
        max_drop: most that it may drop; of "relative" drop_type a part of that of the float model.
        drop_type: "absolute" or "relative".
        float_score: of the float model, on the runtime of the backend.
        quantized_score: of the artifact with all layers quantized that can be; None: it was not tried.
        score: of the artifact.
        met: the drop is within the budget.
        kept: layers that stay float for it.
        trials: how many artifacts were tried.
        seconds: how long that took, ranking of the layers and all.
        complete: False: no more trials were allowed, so fewer layers may do.
    """

    metric: str
    max_drop: float
    drop_type: str
    float_score: float
    quantized_score: float | None
    score: float
    met: bool
    kept: tuple[str, ...] = ()
    trials: int = 0
    seconds: float = 0.0
    complete: bool = True

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BudgetReport:
        """Return what `dataclasses.asdict` made data of; texts such as "nan" become numbers again."""
        scores = {name: None if data[name] is None else float(data[name]) for name in _SCORES}
        return cls(**{**data, **scores, "kept": tuple(data["kept"])})

    @property
    def drop(self) -> float:
        """What the artifact lost, as `drop_type` counts it; negative where it is better."""
        lost = self.float_score - self.score
        return lost / abs(self.float_score) if self.drop_type == "relative" and self.float_score else lost

    def headline(self) -> str:
        """Return one line: met or not, the drop and the layers kept."""
        layers = "1 layer" if len(self.kept) == 1 else f"{len(self.kept)} layers"
        trials = "1 trial" if self.trials == 1 else f"{self.trials} trials"
        kept = f"{layers} kept float for it" if self.kept else "no layer kept float for it"
        verdict = "met" if self.met else "NOT met"
        scores = f"{self.metric} {self.float_score:.5g} -> {self.score:.5g}, at most {self._amount(self.max_drop)} less"
        more = "" if self.complete else ", and no more were allowed: fewer layers may do"
        return f"{verdict}: {scores}; {kept}, {trials}{more}"

    def warning(self) -> str:
        """Return what the user should not miss, empty where the budget is met."""
        if self.met:
            return ""
        lost = f"{self.metric} drops by {self._amount(self.drop)} where {self._amount(self.max_drop)} is allowed"
        return f"the accuracy budget is not met: {lost}, and nor is it with all layers in float"

    def _amount(self, drop: float) -> str:
        return f"{100 * drop:.3g}%" if self.drop_type == "relative" else f"{drop:.3g}"
