"""Runs passes one after the other, checks what each of them promised and writes down what it did."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx_ir as ir

from qcompile.contract import Finding, Keeps, Pass, Result
from qcompile.errors import NothingMatchedError
from qcompile.report import PassReport
from qcompile.session import Feed, OpenSession
from qcompile.verify import EXACT_TOLERANCE, check_exact, check_valid, difference, outputs_of

Progress = Callable[[str, float], None]


@dataclasses.dataclass
class Log:
    """What the passes did.

    Attributes:
        passes: one entry per pass.
        findings: of each pass, by the name of its class.
        outputs: outputs of the model on the samples, as it is now; empty when nothing is verified.
    """

    passes: list[PassReport] = dataclasses.field(default_factory=list)
    findings: dict[str, list[Finding]] = dataclasses.field(default_factory=dict)
    outputs: list[dict[str, np.ndarray]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Applies passes to a model.

    Attributes:
        open_session: runtime in which the promises are checked.
        samples: inputs on which outputs are compared; none: nothing is compared.
        progress: called with the name of what begins and the part that is done.
    """

    open_session: OpenSession
    samples: Sequence[Feed]
    progress: Progress

    def run(self, model: ir.Model, passes: Iterable[Pass], log: Log, *, required: bool) -> ir.Model:
        """Apply the passes in order; exact ones that follow each other are checked together, and one by one on failure.

        Args:
            model: rewritten in place.
            passes: in order.
            log: is added to.
            required: the user asked for these passes: one that matches nothing is an error.

        Raises:
            NothingMatchedError: a required pass found nothing.
            VerificationError: a pass left an invalid model, or an exact one changed what the model computes.
        """
        if self.samples and not log.outputs:
            log.outputs = outputs_of(model, self.samples, self.open_session)
        for keeps, group in itertools.groupby(passes, key=lambda item: item.keeps):
            before = model.clone()
            applied = [(item, self._apply(model, item, log, required)) for item in group]
            modified = [item for item, changed in applied if changed]
            if modified and self.samples:
                self._verify(model, before, modified, keeps, log)
        return model

    def _apply(self, model: ir.Model, item: Pass, log: Log, required: bool) -> bool:
        self.progress(str(item), 0.0)
        start = time.perf_counter()
        result = item(model)
        findings = result.findings if isinstance(result, Result) else ()
        if required and not result.modified and not findings:
            raise _nothing_matched(model, item)
        if result.modified:
            check_valid(model, str(item))
        log.findings.setdefault(type(item).__name__, []).extend(findings)
        log.passes.append(PassReport(str(item), time.perf_counter() - start, result.modified, item.keeps))
        self.progress(str(item), 1.0)
        return result.modified

    def _verify(self, model: ir.Model, before: ir.Model, modified: Sequence[Pass], keeps: Keeps, log: Log) -> None:
        """Compare the outputs with those before the group, and write the difference down at its last pass."""
        outputs = outputs_of(model, self.samples, self.open_session)
        found = difference(log.outputs, outputs)
        if keeps == "exact" and found.relative > EXACT_TOLERANCE:
            self._raise_for_culprit(before, modified, log)
        measured = {"max_error": found.relative} if keeps == "exact" else {"sqnr_db": found.sqnr_db}
        log.passes[-1] = dataclasses.replace(log.passes[-1], **measured)
        log.outputs = outputs

    def _raise_for_culprit(self, before: ir.Model, modified: Sequence[Pass], log: Log) -> None:
        """Apply the passes again one at a time, and raise for the first that changes the outputs."""
        for item in modified:
            item(before)
            check_exact(difference(log.outputs, outputs_of(before, self.samples, self.open_session)), str(item))


def _nothing_matched(model: ir.Model, item: Pass) -> NothingMatchedError:
    operators = Counter(node.op_type for node in model.graph).most_common(5)
    found = ", ".join(f"{count} {name}" for name, count in operators) or "no nodes"
    reason = f"it matched nothing: it looks for {item.looks_for} and found {found}"
    return NothingMatchedError(f"pass {item}", reason, "Take it out of the recipe, or check the model")
