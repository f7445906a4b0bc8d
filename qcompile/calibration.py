"""Statistics of activations over calibration data, streamed through the instrumented float model."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile import calibration_cache, misspelt
from qcompile.calibration_data import Calibration
from qcompile.calibration_masks import PaddingMask, padding_masks
from qcompile.calibration_observation import SAMPLING_INPUT, Instrument, Observation, RowGroup, Statistic, output_name
from qcompile.calibration_rows import RowReservoir
from qcompile.calibration_sample import Array, Feed
from qcompile.calibration_spool import FeedFile, Spool
from qcompile.calibration_stages import Stage, behind, computing
from qcompile.calibration_statistics import ChannelStatistics, RunningStatistics
from qcompile.errors import CalibrationError, QCompileError
from qcompile.memory import return_freed_memory
from qcompile.session import OpenSession, Session
from qcompile.unused_nodes import RemoveUnusedNodes

__all__ = ["Calibrator", "ChannelStatistics"]

_POSITIONS_PER_ROW = 8
"""Neighbours in a sample are alike: rows are drawn from more of them than are kept."""


@dataclasses.dataclass(frozen=True)
class Calibrator:
    """Collects ChannelStatistics of a model on calibration data.

    Attributes:
        data: a Calibration, or its data; read once, at the first use.
        instrument: makes the pass that writes the observers into the model.
        open_session: loads a model in the runtime that computes the float model.
        max_rows: most rows kept of each value.
        row_bytes: memory for all kept rows of one `collect`; lowers max_rows for large models.
        seed: of the places that rows are drawn from.
        progress: called with (samples done, samples in all).
        on_collect: called with the model and its statistics after each `collect`.
    """

    data: Any = dataclasses.field(repr=False)
    instrument: Instrument = dataclasses.field(repr=False)
    open_session: OpenSession = dataclasses.field(repr=False)
    max_rows: int = 512
    row_bytes: int = 64 * 2**20
    seed: int = 0
    progress: Callable[[int, int], None] | None = dataclasses.field(default=None, repr=False, compare=False)
    on_collect: Callable[[ir.Model, Mapping[str, ChannelStatistics]], None] | None = dataclasses.field(
        default=None, repr=False, compare=False
    )
    _spools: list[Spool] = dataclasses.field(default_factory=list, init=False, repr=False, compare=False)

    def samples(self, model: ir.Model) -> Spool:
        """Return the checked samples: iterable any number of times, with their count and fingerprint.

        Raises:
            CalibrationError: the data does not fit the inputs of the model.
        """
        if not self._spools:
            inputs = [value for value in model.graph.inputs if value.const_value is None]
            self._spools.append(Spool(Calibration.of(self.data), inputs))
        return self._spools[0]

    def masks(self, model: ir.Model) -> tuple[PaddingMask, ...]:
        """Return the inputs that rule any position out as padding; one that holds other numbers than 0 and 1 does not.

        Raises:
            CalibrationError: the input that the user named is no padding mask, a sample is nothing but padding, or the
                data does not fit the model.
        """
        samples, name = self.samples(model), Calibration.of(self.data).padding_mask
        masks = padding_masks(model)
        if name is not None:
            masks = tuple(mask for mask in masks if mask.name == name) or (PaddingMask(name),)
            _check_mask(name, model, samples)
        masks = tuple(mask for mask in masks if samples.levels[mask.name].masks_out(1 - mask.valid))
        for mask in masks:
            index = samples.levels[mask.name].constant_in.get(1 - mask.valid)
            if index is not None:
                subject = f"input {mask.name}, calibration sample {index}"
                raise CalibrationError(subject, "it marks every position as padding", "Leave the sample out")
        return masks

    def begin(self, model: ir.Model) -> Stage:
        """Return the samples in front of the model."""
        samples = self.samples(model)
        return Stage(samples, samples.fingerprint)

    def advance(self, model: ir.Model, stage: Stage, cut: tuple[str, ...]) -> Stage:
        """Run the model from a stage to the next cut; of the samples those that the last collection used.

        Args:
            model: the model as it is now, in front of the cut as it will stay.
            stage: where it begins.
            cut: see `find_cut`.
        """
        if cut == stage.cut:
            return stage
        kept = {*cut, *(str(value.name) for value in model.graph.inputs)}
        samples = FeedFile()
        for feed in self.values(model, stage, cut):
            samples.append({name: array for name, array in feed.items() if name in kept})
        made = ""
        if Calibration.of(self.data).cache is not None:  # else nobody asks
            piece = computing(model, stage.cut, cut)
            between = "" if piece is None else calibration_cache.fingerprint(piece)
            made = f"{stage.fingerprint} {between} {sorted(stage.used)} {cut}"
        return Stage(samples, hashlib.sha256(made.encode()).hexdigest(), cut)

    def values(self, model: ir.Model, stage: Stage, names: Collection[str]) -> Iterator[Feed]:
        """Yield each sample of a stage that the last collection used, with what the model computes for these names.

        Args:
            model: the model as it is now.
            stage: where the runs begin.
            names: of values behind it, or at its cut: these are in the samples.
        """
        piece = computing(model, stage.cut, names)
        session = None if piece is None else self.open_session(piece)
        for index, feed in enumerate(stage.samples):
            if not stage.used or index in stage.used:
                computed = {} if session is None else _run_sample(session, feed, index)
                yield {**feed, **computed}
        del session
        return_freed_memory()

    def collect(
        self,
        model: ir.Model,
        axes: Mapping[str, int],
        *,
        gram: Collection[str] = (),
        for_rows: bool = False,
        stage: Stage | None = None,
    ) -> dict[str, ChannelStatistics]:
        """Return value name -> statistics of the float model as it is now; the model itself is not changed.

        Args:
            model: the float model.
            axes: names of values of the main graph -> their channel axis (-1 for linears, 1 for convolutions).
            gram: those of them whose matrix of second moments is wanted.
            for_rows: of the statistics only the rows are of use: samples are left out, evenly, where the others have
                each value at `_POSITIONS_PER_ROW` times as many positions as rows are kept of it.
            stage: where the runs begin, with everything in `axes` behind it; None: in front of the model.

        Raises:
            CalibrationError: the data does not fit the model, or the model has no such value.
        """
        if not axes:
            return {}
        begin = stage or self.begin(model)
        statistics = self._cached(self._observed(model, begin, axes, gram, for_rows=for_rows and not gram))
        if self.on_collect is not None:
            self.on_collect(model, statistics)
        return statistics

    def _observed(
        self, model: ir.Model, stage: Stage, axes: Mapping[str, int], gram: Collection[str], *, for_rows: bool
    ) -> _Observed:
        max_rows = self._affordable_rows(model, axes)
        there = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
        outputs = [name for name in axes if name in there]  # `instrument` refuses others
        observed = behind(model, stage.cut, outputs) if outputs else model.clone()
        result = self.instrument(axes, rows=max_rows, gram=gram, masks=self.masks(model))(observed)
        assert isinstance(result, Observation)
        del observed.graph.outputs[: len(outputs)]  # the runtime need not compute what only they read
        RemoveUnusedNodes()(observed)
        enough = _POSITIONS_PER_ROW * max_rows if for_rows else None
        return _Observed(observed, stage, result.groups, max_rows, enough)

    def _cached(self, observed: _Observed) -> dict[str, ChannelStatistics]:
        folder = Calibration.of(self.data).cache
        if folder is None:
            statistics, used = self._run(observed)
        else:
            # The observers are in the model that is hashed: statistics of other observers are never taken for these.
            model = calibration_cache.fingerprint(observed.model)
            key = f"{model} {observed.stage.fingerprint} {observed.max_rows} {observed.enough} {self.seed}"
            path = pathlib.Path(folder) / f"{hashlib.sha256(key.encode()).hexdigest()}.npz"
            kept = calibration_cache.load(path, [value for group in observed.groups for value in group.values])
            statistics, used = kept or self._run(observed)
            if kept is None:
                calibration_cache.store(path, statistics, used)
        observed.stage.used.update(used)
        return statistics

    def _run(self, observed: _Observed) -> tuple[dict[str, ChannelStatistics], set[int]]:
        session = self.open_session(observed.model)
        collection, used = _Collection(observed.groups, observed.max_rows, self.seed), set()
        samples = observed.stage.samples
        for index, feed in enumerate(samples):
            share = (index + 1) / samples.count
            if observed.enough is None or collection.positions < observed.enough * share:
                collection.add(_run_sample(session, collection.feed(feed), index))
                used.add(index)
            if self.progress is not None:
                self.progress(index + 1, samples.count)
        del session
        return_freed_memory()
        return collection.finish(), used

    def _affordable_rows(self, model: ir.Model, axes: Mapping[str, int]) -> int:
        values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
        shapes = {str(value.name): value.shape for value in values if value.name in axes and value.shape is not None}
        channels = (shape[axes[name]] for name, shape in shapes.items())
        row = 4 * sum(size for size in channels if isinstance(size, int))
        return max(1, min(self.max_rows, self.row_bytes // max(row, 1)))


@dataclasses.dataclass(frozen=True)
class _Observed:
    """A model that tells the statistics of its values, with nothing in it but what they need.

    Attributes:
        model: the instrumented model.
        stage: where it begins, with the samples to run.
        groups: the values that are observed.
        max_rows: most rows kept of each.
        enough: at how many positions each is to be seen; None: at all.
    """

    model: ir.Model
    stage: Stage
    groups: tuple[RowGroup, ...]
    max_rows: int
    enough: int | None


def _check_mask(name: str, model: ir.Model, samples: Spool) -> None:
    inputs = {str(value.name): value for value in model.graph.inputs}
    subject, mend = f"padding_mask {name!r}", "Name the input that marks padding"
    if name not in samples.levels:
        raise CalibrationError(subject, "the model has no such input", misspelt.mend(name, samples.levels))
    shape = inputs[name].shape
    if shape is not None and len(shape) != 2:
        raise CalibrationError(subject, f"it has shape {shape} where a padding mask has [batch, sequence]", mend)
    if not samples.levels[name].binary:
        raise CalibrationError(subject, "it holds other numbers than 0 and 1", mend)


def _run_sample(session: Session, feed: Feed, index: int) -> dict[str, Array]:
    try:
        return session.run(feed)
    except QCompileError as error:
        raise CalibrationError(f"calibration sample {index}", f"the model fails on it ({error})", error.mend) from error


class _Collection:
    """Statistics of all observed values while the runs go on."""

    def __init__(self, groups: tuple[RowGroup, ...], max_rows: int, seed: int) -> None:
        self._groups = groups
        self._reservoirs = [RowReservoir(group.values, max_rows, seed) for group in groups]
        self._running = {value: RunningStatistics() for group in groups for value in group.values}

    @property
    def positions(self) -> int:
        """At how many positions every value has been seen."""
        return min((reservoir.count for reservoir in self._reservoirs), default=0)

    def feed(self, sample: Feed) -> Feed:
        """Return the sample with the instrumented model's extra input."""
        wanted = [reservoir.wanted() for reservoir in self._reservoirs]
        return {**sample, SAMPLING_INPUT: np.array(wanted, np.float32)}

    def add(self, outputs: Mapping[str, Array]) -> None:
        """Take what one run returned."""

        def of(value: str, statistic: Statistic) -> Array:
            return outputs[output_name(value, statistic)]

        for group, reservoir in zip(self._groups, self._reservoirs, strict=True):
            reservoir.add(int(outputs[group.count]), {value: of(value, "rows") for value in group.values})
            for value in group.values:
                gram = outputs.get(output_name(value, "gram"))
                self._running[value].add(of(value, "minimum"), of(value, "maximum"), of(value, "sum"), gram)

    def finish(self) -> dict[str, ChannelStatistics]:
        """Return value name -> statistics over all runs."""
        return {
            value: self._running[value].finish(reservoir.rows(value), reservoir.count)
            for group, reservoir in zip(self._groups, self._reservoirs, strict=True)
            for value in group.values
        }
