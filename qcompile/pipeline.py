"""Runs passes one after the other, checks what each of them promised and writes down what it did."""

from __future__ import annotations

import dataclasses
import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import onnx.checker
import onnx_ir as ir

from qcompile.calibration_masks import PaddingMask
from qcompile.contract import Finding, Keeps, Pass, Result
from qcompile.errors import ModelError, NothingMatchedError, VerificationError, first_line
from qcompile.first_difference import first_difference
from qcompile.layers import float_layers
from qcompile.manifest import check_native
from qcompile.nothing_matched import USE_FLOAT32, nothing_matched
from qcompile.outputs import without_padding
from qcompile.random_outputs import refuse_random
from qcompile.recipe import short
from qcompile.recipe_settings import BOUND
from qcompile.report import PassReport
from qcompile.report.budget import BudgetReport
from qcompile.report.forms import FormReport
from qcompile.session import Feed, OpenSession
from qcompile.untouched import of_other_types, other_types, quantized_already
from qcompile.verify import check_exact, check_valid, difference, outputs_of
from qcompile.verify_layers import accumulated_errors, layer_outputs, output_names
from qcompile.verify_rounding import Verdict, judge

Progress = Callable[[str, float], None]

UNTOUCHED = "untouched"
"""Where the log has the findings on layers that no pass touches."""

_CHECK_FULLY = (
    "Check the model with onnx.checker.check_model(path, full_check=True), and report this if it finds nothing"
)

_CONTRADICTIONS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    onnx.checker.ValidationError,
)
"""What passes, and onnx beneath them, raise on a model whose shapes, types or attributes contradict each other."""


@dataclasses.dataclass
class Log:
    """What the passes did.

    Attributes:
        passes: one entry per pass.
        findings: of each pass, by the name of its class, and of none, by `UNTOUCHED`.
        outputs: outputs of the model on the samples, as it is now; empty when nothing is verified.
        accumulated: of each layer, signal-to-noise ratio of its output in dB behind all lossy passes.
        before_loss: the model in front of the first lossy pass; None where there is none.
        before_quantized: the model in front of the first pass that quantized a layer, an exact one where it kept
            weights as they came; None where none has.
        gains: by how many dB the outputs are nearer to float where one layer alone is left in float, of the worst.
        budget: how the search for a budget of accuracy ended.
        forms: in which the backend writes what it can write in several.
        times: of each layer that was timed, milliseconds quantized and in float.
        not_timed: why none was, and what to do to have them timed.
        missed: of the first lossy pass that was asked for and matched nothing, the error; it is raised where no other
            quantizes anything.
    """

    passes: list[PassReport] = dataclasses.field(default_factory=list)
    findings: dict[str, list[Finding]] = dataclasses.field(default_factory=dict)
    outputs: list[dict[str, np.ndarray]] = dataclasses.field(default_factory=list)
    accumulated: dict[str, float] = dataclasses.field(default_factory=dict)
    before_loss: ir.Model | None = None
    before_quantized: ir.Model | None = None
    gains: dict[str, float] = dataclasses.field(default_factory=dict)
    budget: BudgetReport | None = None
    forms: list[FormReport] = dataclasses.field(default_factory=list)
    times: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    not_timed: str = ""
    missed: NothingMatchedError | None = None

    def quantized(self) -> bool:
        """True once a pass has quantized a layer."""
        return any(each.action == "quantized" for findings in self.findings.values() for each in findings)


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Applies passes to a model.

    Attributes:
        open_session: runtime in which the promises are checked.
        samples: inputs on which outputs are compared; none: nothing is compared.
        masks: inputs that mark padding, which does not count.
        progress: called with the name of what begins and the part that is done.
    """

    open_session: OpenSession
    samples: Sequence[Feed]
    masks: Sequence[PaddingMask]
    progress: Progress

    def run(self, model: ir.Model, passes: Iterable[ir.passes.PassBase], log: Log, *, required: bool) -> ir.Model:
        """Apply the passes in order; exact ones that follow each other are checked together, and one by one on failure.

        Args:
            model: rewritten in place.
            passes: in order.
            log: is added to.
            required: the user asked for these passes: one that matches nothing is an error, but where the model is
                quantized already, in part or as a whole.

        Raises:
            NothingMatchedError: a required exact pass found nothing, or a lossy one and no other quantized anything;
                a model that is nothing but embeddings is quantized by a recipe that has passes for linears too.
            ModelError: the runtime does not take the model, or two runs of it differ.
            VerificationError: a pass left an invalid model, or an exact one changed what the model computes.
        """
        passes = list(passes)
        if required and any(_keeps(item) == "lossy" for item in passes):
            required = not self._untouched(model, passes, log)
        if self.samples and not log.outputs:
            log.outputs = self._first_outputs(model)
        names: dict[str, str] = {}
        exact: dict[str, np.ndarray] = {}
        for group in _groups(passes):
            if log.before_loss is None and _keeps(group[0]) == "lossy":
                log.before_loss = model.clone()  # its weights are lazy, or those of the model that came
            if self.samples and not names and _keeps(group[0]) == "lossy":
                # Not of the model as it came: folded scales change what layers in between compute.
                names = output_names(model)
                exact = layer_outputs(model, names, self.samples[0], self.masks, self.open_session)
            before = model.clone()
            modified = [item for item in group if self._apply(model, item, log, required)]
            if log.before_quantized is None and log.quantized():
                log.before_quantized = before
            if modified and self.samples:
                self._verify(model, before, modified, log)
        if log.missed is not None and not log.quantized():
            raise log.missed
        if exact:
            noisy = layer_outputs(model, names, self.samples[0], self.masks, self.open_session)
            log.accumulated = accumulated_errors(exact, noisy)
        return model

    def _untouched(self, model: ir.Model, passes: Sequence[ir.passes.PassBase], log: Log) -> bool:
        """Write down the layers that no pass will touch; True when some are quantized already.

        Then a pass that matches nothing is no error: what it was asked for has been done. Where the type of the weights
        is the cause, the error comes before work is done on them.
        """
        quantized, of_others = quantized_already(model), of_other_types(model)
        log.findings.setdefault(UNTOUCHED, []).extend([*quantized, *of_others])
        if of_others and not quantized and not float_layers(model):
            for item in passes:
                if isinstance(item, Pass) and item.keeps == "lossy" and not item.may_match_nothing:
                    raise nothing_matched(model, name_of(item), item)
        return bool(quantized)

    def _first_outputs(self, model: ir.Model) -> list[dict[str, np.ndarray]]:
        """Run the model as it came; where the runtime refuses it, say which types of its weights may be the cause."""
        try:
            for value in model.graph.outputs:
                if value.dtype is not None:
                    check_native(str(value.name), value.dtype.numpy())
            return outputs_of(model, self.samples, self.open_session)
        except ModelError as error:
            others = other_types(model)
            if not others:
                raise
            reason = f"its weights are {' and '.join(others)}, and {error.reason.rstrip('.')}"
            raise ModelError(error.subject, reason, USE_FLOAT32) from error

    def _apply(self, model: ir.Model, item: ir.passes.PassBase, log: Log, required: bool) -> bool:
        name = name_of(item)
        self.progress(name, 0.0)
        start = time.perf_counter()
        result = apply_pass(item, model)
        findings = result.findings if isinstance(result, Result) else ()
        optional = not required or (isinstance(item, Pass) and item.may_match_nothing)
        if not (optional or result.modified or findings):
            missed = nothing_matched(model, name, item)
            if _keeps(item) == "exact":
                raise missed
            log.missed = log.missed or missed
            findings = (Finding(name, "kept", missed.reason),)
        if result.modified:
            check_valid(model, name)
        log.findings.setdefault(type(item).__name__, []).extend(findings)
        log.passes.append(PassReport(name, time.perf_counter() - start, result.modified, _keeps(item)))
        self.progress(name, 1.0)
        return result.modified

    def _verify(self, model: ir.Model, before: ir.Model, modified: Sequence[ir.passes.PassBase], log: Log) -> None:
        """Compare the outputs with those before the group, and write the difference down."""
        outputs = outputs_of(model, self.samples, self.open_session)
        if _keeps(modified[0]) == "exact":
            verdict = judge((before, model), (log.outputs, outputs), self.samples, self.masks, self.open_session)
            if not verdict.kept:
                refuse_random(before, self.samples, self.masks, self.open_session)
                self._raise_for_culprit(before, modified, log, verdict)
            measured = {"in_float64": verdict.in_float64, "rounding": verdict.rounding}
            self._note(log, modified[-1], max_error=verdict.found.relative, **measured)
        else:
            # Padded positions do not count: in a causal model with padding in front they attend to nothing, and softmax
            # over nothing is the average of all, zeros or undefined, as the operator and the runtime like it.
            sides = (without_padding(side, self.samples, self.masks) for side in (log.outputs, outputs))
            self._note(log, modified[-1], sqnr_db=difference(*sides).sqnr_db)
        log.outputs = outputs

    def _note(self, log: Log, last: ir.passes.PassBase, **measured: Any) -> None:
        """Write a measurement down at the last pass that changed the model; it covers those before it in the group."""
        index = max(index for index, entry in enumerate(log.passes) if entry.name == name_of(last))
        log.passes[index] = dataclasses.replace(log.passes[index], **measured)

    def _raise_for_culprit(
        self, before: ir.Model, modified: Sequence[ir.passes.PassBase], log: Log, together: Verdict
    ) -> NoReturn:
        """Apply the passes again one at a time, and raise for the first that changes the outputs, or for them all."""
        model = before.clone()
        for item in modified:
            previous = model.clone()
            apply_pass(item, model)
            outputs = outputs_of(model, self.samples, self.open_session)
            verdict = judge((before, model), (log.outputs, outputs), self.samples, self.masks, self.open_session)
            if not verdict.kept:
                first = first_difference(previous, model, self.samples, self.masks, self.open_session)
                check_exact(verdict.found, name_of(item), first, verdict.words)
        found = together.found
        reason = (
            f"together they changed output {found.output} by {found.relative:.2g} of its range where they promise "
            f"to keep it; applied one by one again, none did; {together.words}"
        )
        raise VerificationError(f"passes {', '.join(map(name_of, modified))}", reason, "Report this with the model")


def apply_pass(item: ir.passes.PassBase, model: ir.Model) -> ir.passes.PassResult:
    """Apply one pass.

    The format's checker lets models through that contradict themselves, a convolution whose weight is a scalar among
    them; no pass asks for all of it again.

    Raises:
        ModelError: the pass fails on this model; the cause is what it raised.
    """
    try:
        return item(model)
    except _CONTRADICTIONS as error:
        reason = f"it fails on this model ({type(error).__name__}: {first_line(error)})"
        raise ModelError(f"pass {name_of(item)}", reason, _CHECK_FULLY) from error


def name_of(item: ir.passes.PassBase) -> str:
    """Name of a pass as recipes write it, with the settings that differ from its defaults; of onnx_ir's, its class."""
    if not isinstance(item, Pass):
        return type(item).__name__
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(item).__name__).lower()
    settled: Any = item  # every pass is a dataclass, which its type does not say
    settings = [
        f"{field.name}={short(getattr(item, field.name))}"
        for field in dataclasses.fields(settled)
        if field.repr and field.name not in BOUND and getattr(item, field.name) != field.default
    ]
    return f"{name}({', '.join(settings)})" if settings else name


def _groups(passes: Iterable[ir.passes.PassBase]) -> Iterator[list[ir.passes.PassBase]]:
    """Exact passes that follow each other are one group; each lossy pass, which is measured, is its own."""
    for keeps, group in itertools.groupby(passes, key=_keeps):
        if keeps == "exact":
            yield list(group)
        else:
            yield from ([item] for item in group)


def _keeps(item: ir.passes.PassBase) -> Keeps:
    """What a pass promises; those of onnx_ir keep the meaning."""
    return item.keeps if isinstance(item, Pass) else "exact"
