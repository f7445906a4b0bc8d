"""Stores the weights of linears in groups of few bits; what they read stays float."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from qcompile import layers, qdq, weight_only
from qcompile.bit_allocation import Schemes, Told, allocate_bits, check_target, fewest_bits
from qcompile.calibration import Calibrator
from qcompile.calibration_layers import LayerStatistics
from qcompile.calibration_statistics import ChannelStatistics
from qcompile.contract import GIVE_MORE_DATA, Finding, Keeps, Pass, Result
from qcompile.errors import RecipeError
from qcompile.finished_layers import FinishedLayers
from qcompile.graph import Linear
from qcompile.initializers import remove_unused
from qcompile.layers import Layer
from qcompile.scheme import GroupScheme
from qcompile.solvers.asymmetric import asymmetric_target
from qcompile.solvers.grouped import Evidence, Grouped
from qcompile.solvers.rtn import rtn
from qcompile.weight_only import NEEDS_MOMENTS, SOLVERS, BiasCorrection, Solver

_EFFECTIVE_BITS = 4.25
"""For each number, with bits "auto" and no other word on how many."""

Done = dict[ir.Value, tuple[ir.Value, Finding]]
"""Float weight -> what is read in its place, and what was said of it."""


@dataclasses.dataclass(frozen=True)
class QuantizeWeights(Pass):
    """MatMul(x, W) -> MatMul(x, DequantizeLinear(integers of few bits, a scale for each group of inputs)).

    Weights are dequantized by the kernel, or when the model is loaded: what is gained is the time to read them. Does
    not fire on layers that are ignored, and on weights that are empty or hold `broken_numbers`.

    Attributes:
        bits: of each integer, 1 to 8; "auto": one of `widths` for each weight, see `allocate_bits`.
        group_size: inputs that share a scale, of each output; the last group may be smaller. -1: all of them.
        sym: symmetric, with scales that may be negative; or with zero points.
        solver: how the integers and scales are found.
            "inc" is `auto_round`. Without calibration data, gptq and inc are rtn at the scale of the range.
        range_grid: how many parts of the range of a group are tried as its scale; 0: it is that of the whole range.
        damp_percent: see `gptq_groups`, as for the next three.
        desc_act: of gptq.
        static_groups: of gptq.
        sweeps: of gptq.
        iters: of inc.
        bias_correction: "linears": what rounding adds to outputs on average is taken off the bias where a linear has
            one; of tied weights, that of the first. "none": MiniLM loses more (1 - cosine on held-out text: rtn .047
            for .033 in 4 bits, .161 for .128 in 3; gptq .0103 for .0102, .0344 for .0342).
        effective_bits: of bits "auto", the most for each number of all weights together, with scales and zero points;
            None: 4.25, where there is no `max_drop`.
        calibration: what the outputs of a linear are held to: "symmetric": the products of what it reads, and rounding
            alone is an error; "asymmetric": what the float model computes there, so that a linear makes up for the
            errors of all in front of it, see `asymmetric_target`; the report then has the error of rounding
            that weight. Does not apply to those that score a vocabulary, and where `asymmetric_statistics` says so.
        max_drop: of bits "auto", in the place of `effective_bits`: the fewest bits with which the cosine to the outputs
            before this pass drops by no more, see `fewest_bits`; needs calibration data.
        widths: what bits "auto" chooses from: 3 are stored in 4 by every runtime.
        head: scheme of a linear that scores a vocabulary, see `weight_only.writes_vocabulary`; None: as the others. In
            8 bits it is rounded to nearest, in fewer it is solved as the others are.
        ignore: layers that stay float, by name; bound by `compile`.
        operators: "Linear" where the backend has such weights; bound by `compile`.
        calibrator: source of the statistics; bound by `compile`.
        finished: where weights go that are solved; None: they stay in memory. Bound by `compile`.

    Raises:
        RecipeError: a number is out of its range.
    """

    bits: int | Literal["auto"] = 4
    group_size: int = 64
    sym: bool = True
    solver: Solver = "rtn"
    range_grid: int = 10
    damp_percent: float = 0.01
    desc_act: bool = True
    static_groups: bool = True
    sweeps: int = 1
    iters: int = 200
    bias_correction: BiasCorrection = "linears"
    effective_bits: float | None = None
    max_drop: float | None = None
    calibration: Literal["symmetric", "asymmetric"] = "symmetric"
    widths: tuple[int, ...] = (2, 4, 8)
    head: GroupScheme | None = weight_only.HEAD
    ignore: frozenset[str] = frozenset()
    operators: frozenset[str] = frozenset({"Linear"})
    calibrator: Calibrator | None = dataclasses.field(default=None, repr=False, compare=False)
    finished: FinishedLayers | None = dataclasses.field(default=None, repr=False, compare=False)

    keeps: ClassVar[Keeps] = "lossy"
    looks_for: ClassVar[str] = "MatMul with a constant float32 weight"

    def __post_init__(self) -> None:
        try:
            _ = self.schemes
        except ValueError as error:
            raise RecipeError("quantize_weights", str(error), "Give 1 to 8 bits, and a positive group_size") from error
        check_target(self.bits, self.effective_bits, self.max_drop)
        counts = {
            "range_grid": self.range_grid,
            "sweeps": self.sweeps,
            "iters": self.iters,
            "damp_percent": self.damp_percent,
        }
        for name, number in counts.items():
            if number < 0:
                raise RecipeError(f"quantize_weights.{name}", f"it is {number}, less than 0", "Give 0 or more")

    @property
    def schemes(self) -> tuple[GroupScheme, ...]:
        """How the weights are stored, but for that of a vocabulary: all as the only one, or each as one of several."""
        widths = (self.widths or (0,)) if self.bits == "auto" else (self.bits,)
        return tuple(GroupScheme(bits, self.group_size, self.sym) for bits in widths)

    def without_calibration(self) -> Pass | None:
        """Solve without data: what cannot is rounded to nearest, and no range is cut.

        Cut ranges have the smaller error of weights, and not always of outputs: the loss of SmolLM2 rises by .26 nats
        with none cut, and by .37 with hqq (4 bits in groups of 64; 1.25 and 1.65 in 3 bits). Without data there are no
        outputs that `max_drop` could be held to.
        """
        if self.max_drop is not None:
            return None
        left = dataclasses.replace(self, calibration="symmetric")
        return dataclasses.replace(left, solver="rtn", range_grid=0) if self.solver in NEEDS_MOMENTS else left

    def call(self, model: ir.Model) -> Result:
        """Quantize every linear that can be; one finding for each."""
        chosen = weight_only.select(model, self.ignore, self.operators, self.head)
        others = [linear for linear in chosen.linears if linear.matmul not in chosen.heads]
        heads = [linear for linear in chosen.linears if linear.matmul in chosen.heads]
        findings = list(chosen.findings)
        done: Done = {}
        auto, told = self._allocated(model, others, heads)
        exact = model.clone() if self.calibration == "asymmetric" else None
        # A head that is rounded to nearest needs statistics for the report alone: the last others' run collects them.
        together = _is_nearly_float(self.head) and exact is None
        grams = self.solver in NEEDS_MOMENTS
        apart = [(others, exact, grams), (heads, None, grams and not _is_nearly_float(self.head))]
        for group, held, moments in [(others + heads, None, grams)] if together else apart:
            for part in weight_only.calibrated(self.calibrator, model, group, grams=moments, exact=held):
                for linear in part.layers:
                    head = self.head if layers.node_of(linear) in chosen.heads else None
                    findings.append(self._quantize(linear, head, auto, part, done))
                del part  # with hundreds of rows of every value
        chosen.mark_tables({weight: value for weight, (value, _) in done.items()})
        remove_unused(done)
        if told is not None:
            findings.append(told(model))
        return Result(model, modified=bool(done), findings=tuple(findings))

    def _allocated(
        self, model: ir.Model, linears: Sequence[Linear], heads: Sequence[Linear]
    ) -> tuple[Schemes, Told | None]:
        """Return a scheme for each weight where bits are "auto", and what says so."""
        if self.bits != "auto" or not linears:
            return {}, None
        parts = weight_only.calibrated(self.calibrator, model, linears)
        if self.max_drop is None:
            budget = _EFFECTIVE_BITS if self.effective_bits is None else self.effective_bits
            return allocate_bits(model, parts, self.schemes, budget, self.calibrator)
        assert self.calibrator is not None  # `without_calibration` leaves the pass out
        grid = {"range_grid": self.range_grid} if self.solver == "rtn" else {}
        fixed = {} if self.head is None else {linear.weight: self.head for linear in heads}
        return fewest_bits(model, parts, self.schemes, self.max_drop, self.calibrator, fixed=fixed, **grid)

    def _quantize(
        self, linear: Layer, head: GroupScheme | None, auto: Schemes, seen: LayerStatistics, done: Done
    ) -> Finding:
        """Quantize one linear with the scheme of a head, or that for its weight; those with tied weights read one."""
        assert isinstance(linear, Linear)
        if linear.weight not in done:
            scheme = head or auto.get(linear.weight, self.schemes[0])
            tensor, multiplied = linear.weight.const_value, seen.of(linear.x)
            assert tensor is not None
            weight, known = tensor.numpy(), weight_only.evidence(multiplied)
            if linear.matmul in seen.lacks and known.gram is not None:
                assert multiplied is not None
                # Of few positions the moments with what is lacking are mostly chance, the more so the more inputs.
                damp = self.damp_percent + len(weight) / multiplied.count
                weight = asymmetric_target(weight, known.gram, seen.lacks[linear.matmul], damp)
            found, file = self._found(weight, known, scheme, nearest=_is_nearly_float(head))
            rows = np.zeros((0, len(weight)), np.float32) if multiplied is None else multiplied.rows
            sqnr = weight_only.output_sqnr(weight, found, scheme.group_size, rows)
            value = qdq.dequantized_groups(linear.weight, found, scheme, linear.matmul, file)
            if self.bias_correction == "linears":
                weight_only.correct_outputs(linear, weight, found, scheme.group_size, rows)
            remarks = [f"{scheme.bits} bits" if auto else "", found.remark, self._few(multiplied, len(weight))]
            remark = "; ".join(each for each in remarks if each)
            done[linear.weight] = value, layers.finding(linear, "quantized", remark, sqnr)
        value, finding = done[linear.weight]
        qdq.replace_input(linear.matmul, linear.weight, value)
        return layers.finding(linear, "quantized", finding.reason, finding.sqnr_db)

    def _few(self, multiplied: ChannelStatistics | None, inputs: int) -> str:
        """Say so where calibration saw fewer positions than the solver fits directions: it fits chance then."""
        if self.solver not in NEEDS_MOMENTS or multiplied is None or multiplied.count >= inputs:
            return ""
        return f"calibrated at {multiplied.count} positions, fewer than its {inputs} inputs: {GIVE_MORE_DATA}"

    def _found(
        self, weight: np.ndarray, seen: Evidence, scheme: GroupScheme, *, nearest: bool
    ) -> tuple[Grouped, Path | None]:
        """Return the weight in groups, and the file that holds it, where they are kept."""
        solve, names = (rtn, ()) if nearest else SOLVERS[self.solver]
        settings = {name: getattr(self, name) for name in names}
        solved = functools.partial(solve, weight, scheme, seen, **settings)
        if self.finished is None:
            return solved(), None
        return self.finished.solved(weight, seen, (solve.__name__, scheme, settings), solved)


def _is_nearly_float(head: GroupScheme | None) -> bool:
    """Whether the weight of a vocabulary has so many bits that no solver brings it closer to float."""
    return head is not None and head.bits >= weight_only.HEAD.bits
