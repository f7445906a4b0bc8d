"""Report: what a compilation did, as data that goes to JSON and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.contract import Action, Finding, Keeps
from qcompile.errors import ArtifactError
from qcompile.report.budget import BudgetReport
from qcompile.report.forms import FormReport
from qcompile.report.types import check_types
from qcompile.session import Agreement

_MEASURED = frozenset(
    {"seconds", "max_error", "in_float64", "rounding", "sqnr_db", "accumulated_db", "gain_db"}
    | {"before", "after", "max_steps", "rms_steps"}
)
"""Fields of the entries of a report that are numbers, or tuples of them, and may be infinite or NaN."""

MEASURED_ON = "measured on"
"""Key of `Report.accuracy` under which a text says what the figures were measured on."""

CULPRIT_DB = 20.0
"""A quantized layer whose signal-to-quantization-noise ratio is lower (an error above a tenth) is a culprit."""


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """What was done with one linear, convolution, attention product, embedding or other operator with a weight.

    Attributes:
        name: as the user knows it (`graph.layer_name`).
        operator: "Linear", "Conv", "ConvTranspose", "Attention" or "Embedding"; of others, the operator.
        action: "quantized"; "kept" float because it had to be; "ignored" because the user said so.
        reason: why it was not quantized, or what is special about it.
        sqnr_db: signal-to-quantization-noise ratio of its output in dB, this layer alone quantized: the error that it
            adds. None if not measured.
        accumulated_db: the same with all layers quantized: the error that has come together behind it, measured on
            the Q/DQ graph before lowering. None if not measured.
        shape: of its weight; () when it has none.
        scheme: how it is quantized, in words, e.g. "uint8 per tensor × int8 per channel".
        gain_db: by how many dB the ratio of the outputs rises when this layer alone is left in float: what `ignore`
            would bring. Measured for the worst layers; None if not measured.
        quantized_ms: how long it takes quantized, with its Q/DQ, in milliseconds of the processor on one thread, where
            several layers have its name all of them; None if tuning did not measure it.
        float_ms: the same in float.
    """

    name: str
    operator: str
    action: Action
    reason: str = ""
    sqnr_db: float | None = None
    shape: tuple[int, ...] = ()
    scheme: str = ""
    accumulated_db: float | None = None
    gain_db: float | None = None
    quantized_ms: float | None = None
    float_ms: float | None = None


@dataclasses.dataclass(frozen=True)
class PassReport:
    """What one pass did to the model.

    Attributes:
        name: the line of the recipe that made it.
        seconds: wall time.
        modified: False when it changed nothing.
        keeps: its promise: "exact" or "lossy".
        max_error: of an exact pass, the largest difference to the model before it, relative to the output's range.
        in_float64: where that is more than passes may change, the same in float64, where there is next to no rounding.
        rounding: where that is so, how far the runtime is from float64 without the pass, relative to the range.
        sqnr_db: of a lossy pass, the signal-to-quantization-noise ratio of the outputs, in dB.
    """

    name: str
    seconds: float
    modified: bool = True
    keeps: Keeps = "exact"
    max_error: float | None = None
    in_float64: float | None = None
    rounding: float | None = None
    sqnr_db: float | None = None

    @property
    def title(self) -> str:
        """Name of the pass without its settings."""
        return self.name.partition("(")[0]

    @property
    def settings(self) -> str:
        """The settings of the pass, as it prints them; empty without any."""
        return self.name.partition("(")[2].removesuffix(")")


@dataclasses.dataclass(frozen=True)
class ActivationRange:
    """Largest magnitude per channel of a layer's input, before and after smoothing.

    Attributes:
        layer: name of the layer that reads the activation.
        before: one value per channel, or per run of neighbouring channels; of the float model.
        after: the same of the smoothed model.
        channels: how many channels the activation has.
    """

    layer: str
    before: tuple[float, ...]
    after: tuple[float, ...]
    channels: int = 0

    @classmethod
    def of(cls, layer: str, before: np.ndarray, after: np.ndarray, *, points: int = 192) -> ActivationRange:
        """Reduce two vectors of shape [C] to at most `points` values each, keeping every outlier.

        Neighbouring channels share a point, which holds the largest of them; four significant digits stay.
        """
        count = len(before)
        starts = np.unique(np.linspace(0, count, min(points, count), endpoint=False).astype(np.int64))
        reduced = [np.maximum.reduceat(np.asarray(values, dtype=np.float64), starts) for values in (before, after)]
        first, second = (tuple(float(f"{value:.4g}") for value in values) for values in reduced)
        return cls(layer, first, second, count)

    @property
    def peak_ratio(self) -> float:
        """How far the largest channel stands out of the median one, before divided by after."""

        def stands_out(values: tuple[float, ...]) -> float:
            median = float(np.median(values))
            return max(values) / median if median > 0 else 1.0

        return stands_out(self.before) / stands_out(self.after) if self.before else 1.0


@dataclasses.dataclass
class Report:
    """Everything that a user asks after a compilation.

    Attributes:
        model: name of the model.
        recipe: name of the recipe.
        backend: name of the backend.
        target: processor that the artifact was made for, or None.
        layers: one entry per operator with a weight, and per product of attention that was looked at, in graph order.
        channel_scales: {"folded": int, "explicit": int}: smoothing scales that cost nothing, and those that cost a Mul.
        latency: {"float_ms": float, "quantized_ms": float} on the same runtime; empty when not measured.
        accuracy: measure -> value, or output -> {measure: value}, against the float model.
        size: {"float_bytes": int, "quantized_bytes": int}: of the files; the float one has tied tables once.
        passes: one entry per pass, in order.
        activation_ranges: one entry per smoothed activation.
        findings: decisions that concern no single layer of `layers`.
        agreements: how far the artifact is from the reference of its arithmetic, in each mode of the runtime.
        not_compared: why there is none of them; empty where there is.
        budget: how the search for a budget of accuracy ended; None where there was no budget.
        forms: in which the backend wrote what it can write in several.
        bits_per_weight: see `qcompile.bits_per_weight`; empty where no weight is quantized.
        not_timed: why no layer was timed, and what to do to have them timed; empty where some were.
    """

    model: str = ""
    recipe: str = ""
    backend: str = ""
    target: str | None = None
    layers: list[LayerReport] = dataclasses.field(default_factory=list)
    channel_scales: dict[str, int] = dataclasses.field(default_factory=lambda: {"folded": 0, "explicit": 0})
    latency: dict[str, float] = dataclasses.field(default_factory=dict)
    accuracy: dict[str, Any] = dataclasses.field(default_factory=dict)
    size: dict[str, int] = dataclasses.field(default_factory=dict)
    passes: list[PassReport] = dataclasses.field(default_factory=list)
    activation_ranges: list[ActivationRange] = dataclasses.field(default_factory=list)
    findings: list[Finding] = dataclasses.field(default_factory=list)
    agreements: list[Agreement] = dataclasses.field(default_factory=list)
    not_compared: str = ""
    budget: BudgetReport | None = None
    forms: list[FormReport] = dataclasses.field(default_factory=list)
    not_timed: str = ""
    bits_per_weight: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return data that `json` writes as it is; infinities and NaN become the texts that `float` reads."""
        data: dict[str, Any] = jsonable(dataclasses.asdict(self))
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """Return the report that `to_dict` made data of.

        Raises:
            TypeError, ValueError: the data is not that of a report.
        """
        fields = dict(data)
        for name, item in _ENTRIES.items():
            fields[name] = [item(**{key: _field(key, value) for key, value in entry.items()}) for entry in data[name]]
        fields["latency"] = _numbers(fields["latency"])
        accuracy = fields["accuracy"]
        measured_on = {MEASURED_ON: str(accuracy[MEASURED_ON])} if MEASURED_ON in accuracy else {}
        fields["accuracy"] = _numbers({**accuracy, **dict.fromkeys(measured_on)}) | measured_on
        fields["forms"] = [FormReport.from_dict(entry) for entry in data.get("forms", [])]
        if fields.get("budget") is not None:
            fields["budget"] = BudgetReport.from_dict(fields["budget"])
        report = cls(**fields)
        check_types(report)
        return report

    def quantized_layers(self) -> list[LayerReport]:
        """Return the layers that are quantized now and were not before, in graph order."""
        return [layer for layer in self.layers if layer.action == "quantized"]

    def culprits(self) -> list[LayerReport]:
        """Return the quantized layers that lose most, ranked as by `ranked_layers`: those below CULPRIT_DB."""
        return [
            layer
            for layer in self.ranked_layers()
            if layer.action == "quantized" and layer.sqnr_db is not None and layer.sqnr_db < CULPRIT_DB
        ]

    def ranked_layers(self) -> list[LayerReport]:
        """Return the layers, worst first: quantized by gain where it was measured, then by SQNR; kept, then ignored."""
        order = ("quantized", "kept", "ignored")

        def rank(layer: LayerReport) -> tuple[int, float, float]:
            place = order.index(layer.action) if layer.action in order else len(order)
            loss = math.inf if layer.sqnr_db is None or math.isnan(layer.sqnr_db) else layer.sqnr_db
            return place, math.inf if layer.gain_db is None else -layer.gain_db, loss

        return sorted(self.layers, key=rank)

    def summary(self) -> str:
        """Return the report as plain text, culprits first."""
        from qcompile.report.text import summarise

        return summarise(self)

    def save_html(self, path: str | Path) -> None:
        """Write the report as one page that needs no network.

        Raises:
            MissingDependencyError: jinja2 (extra `report`) is not installed.
            ArtifactError: the name does not end in .html, or the file cannot be written.
        """
        from qcompile.report.page import render

        if Path(path).suffix.lower() not in (".html", ".htm"):
            raise ArtifactError(f"page {path}", "its name does not end in .html", "Name it so: report.html")

        page = render(self)
        try:
            Path(path).write_text(page, encoding="utf-8")
        except (OSError, TypeError, ValueError) as error:  # ValueError: a name that no file can have
            mend = "Give a file in a folder that is there"
            raise ArtifactError(f"page {path}", f"it cannot be written: {error}", mend) from error


_ENTRIES: Mapping[str, Callable[..., Any]] = {
    "layers": LayerReport,
    "passes": PassReport,
    "activation_ranges": ActivationRange,
    "findings": Finding,
    "agreements": Agreement,
}
"""Fields of a report that are lists, and what is in them."""


def jsonable(value: Any) -> Any:
    """Return data that `json` writes as it is: numbers of numpy as Python's, infinities and NaN as texts."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, np.generic):
        return jsonable(value.item())
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _field(name: str, value: Any) -> Any:
    if name in _MEASURED:
        return _restored(value)
    return tuple(value) if isinstance(value, list) else value


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(float(item) if isinstance(item, str) else item for item in value)
    return float(value) if value in ("inf", "-inf", "nan") else value


def _numbers(value: Any) -> Any:
    """Return what mappings hold as numbers; None, and texts that `float` reads, may stand for one."""
    if isinstance(value, Mapping):
        return {key: _numbers(item) for key, item in value.items()}
    return None if value is None else float(value)
