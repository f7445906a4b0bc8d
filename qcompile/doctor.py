"""What the runtimes of this machine can do: asked, and measured on a small model that the reference judges."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile import backends, processor
from qcompile.backends import Backend
from qcompile.capability import SATURATING_TARGETS
from qcompile.compile import compile
from qcompile.errors import MissingDependencyError, ModelError, VerificationError
from qcompile.frontend import OPSET
from qcompile.manifest import versions
from qcompile.pipeline import Progress
from qcompile.recipe import Recipe
from qcompile.report.data import jsonable

WIDTH = 512
ROWS = 64
PACKAGES = ("qcompile", "numpy", "onnx", "onnx-ir", "onnxscript", "torch")
FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm")
"""Flags of /proc/cpuinfo that decide how fast, and how right, products of 8 bits are."""

_PER_TOKEN = {"dtype": "int8", "granularity": "per_token", "sym": True, "dynamic": True}
_RECIPES: Mapping[str, Mapping[str, Any]] = {"static": {}, "dynamic": {"activations": _PER_TOKEN}}


@dataclasses.dataclass(frozen=True)
class Check:
    """A small linear, quantized, that a runtime computed on this machine beside the reference of its arithmetic.

    The largest weights meet the largest activations in it: where products of 8-bit pairs saturate, it is wrong.

    Attributes:
        name: "static" or "dynamic": how its activations are quantized.
        target: the processor that it was compiled for, or None.
        max_steps: how far it is from the reference, in quantization steps; None where it is wrong.
        float_ms: median time of the float linear, in milliseconds; None where it is wrong.
        quantized_ms: the same of the quantized one.
        problem: what is wrong; empty where nothing is.
        mend: what to do about it.
    """

    name: str
    target: str | None
    max_steps: float | None = None
    float_ms: float | None = None
    quantized_ms: float | None = None
    problem: str = ""
    mend: str = ""


@dataclasses.dataclass(frozen=True)
class Runtime:
    """A backend on this machine.

    Attributes:
        backend: its name.
        version: of its package, or None where that is not installed: no problem, it is an extra.
        says: what the runtime says of itself and of the processor.
        checks: what it computed.
        problem: why it cannot be used although it is installed; empty where it can.
        mend: what to do about it.
    """

    backend: str
    version: str | None
    says: Mapping[str, str] = dataclasses.field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    problem: str = ""
    mend: str = ""


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found.

    Attributes:
        processor: its name, as the operating system knows it.
        features: those of FEATURES that the operating system lists; None where it lists none.
        cores: how many the operating system has.
        python: version.
        versions: package -> version.
        runtimes: one entry for each backend.
    """

    processor: str
    features: tuple[str, ...] | None
    cores: int | None
    python: str
    versions: Mapping[str, str]
    runtimes: tuple[Runtime, ...]

    @property
    def problems(self) -> list[str]:
        """What is wrong, one line each; empty where nothing is."""
        return [
            *(f"{each.backend}: {each.problem}" for each in self.runtimes if each.problem),
            *(f"{each.backend}: {check.problem}" for each in self.runtimes for check in each.checks if check.problem),
        ]

    @property
    def computes_wrong(self) -> bool:
        """True where a runtime that can be used computes wrong, or not at all."""
        return any(check.problem for each in self.runtimes for check in each.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return data that `json` writes as it is, the problems among it."""
        data: dict[str, Any] = jsonable(dataclasses.asdict(self) | {"problems": self.problems})
        return data


def diagnose(*, target: str | None = None, progress: Progress | None = None) -> Diagnosis:
    """Say what is installed, what the processor has, and whether each runtime computes 8-bit products right on it.

    Args:
        target: processor to compile for, see the backends' `targets`; None: one like this.
        progress: called with the name of what begins and the part that is done.

    Raises:
        UnsupportedError: there is no such target.
    """
    report_progress = progress or (lambda _stage, _part: None)
    runtimes = []
    for index, name in enumerate(backends.BACKENDS):
        report_progress(f"trying {name}", index / len(backends.BACKENDS))
        runtimes.append(examine(name, target))
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    flags = processor.flags()
    features = tuple(each for each in FEATURES if each in flags) if flags else None
    cores, python = os.cpu_count(), platform.python_version()
    return Diagnosis(processor.name(), features, cores, python, found, tuple(runtimes))


def examine(name: str, target: str | None = None) -> Runtime:
    """Try one backend; arguments and errors as for `diagnose`."""
    version = versions(name).get(name)
    try:
        engine = backends.get(name)
    except MissingDependencyError as error:
        if version is None:
            return Runtime(name, None)
        return Runtime(
            name, version, problem=f"it is installed, and {error.reason}", mend=f"{error.mend}, with --force-reinstall"
        )
    if target not in engine.targets and target in backends.get("onnxruntime").targets:
        target = None  # a processor, and this runtime is for none
    checks = tuple(_check(engine, kind, target) for kind in _RECIPES)
    return Runtime(name, version, engine.describe(), checks)


def _check(engine: Backend, kind: str, target: str | None) -> Check:
    """Compile the small model and let `compile` verify it; where that fails, see whether another target mends it."""
    try:
        report = _compiled(engine, kind, target)
    except (ModelError, VerificationError) as error:
        others = [each for each in SATURATING_TARGETS if each != target and _is_right(engine, kind, each)]
        mend = f'Compile with target="{others[0]}" (--target {others[0]}) for this processor' if others else error.mend
        verdict = "is wrong" if isinstance(error, VerificationError) else "does not run"
        reason = " ".join(error.reason.split())
        return Check(kind, target, problem=f"{kind} INT8 {verdict}: {reason}", mend=mend)
    largest = max((found.max_steps for found in report.agreements), default=None)
    return Check(kind, target, largest, report.latency.get("float_ms"), report.latency.get("quantized_ms"))


def _is_right(engine: Backend, kind: str, target: str) -> bool:
    try:
        _compiled(engine, kind, target)
    except (ModelError, VerificationError):
        return False
    return True


def _compiled(engine: Backend, kind: str, target: str | None) -> Any:
    recipe = Recipe.from_data({"name": f"{kind} INT8", "steps": [{"insert_qdq": dict(_RECIPES[kind])}]})
    artifact = compile(_linear(), recipe, backend=engine.name, calibration=_samples(), target=target, tune="none")
    return artifact.report


def _linear() -> ir.Model:
    x = ir.val("x", ir.DataType.FLOAT, [ROWS, WIDTH])
    weight = ir.val("w", const_value=ir.tensor(np.full((WIDTH, WIDTH), 1.0, np.float32), name="w"))
    product = ir.node("MatMul", [x, weight], outputs=[ir.val("y", ir.DataType.FLOAT, [ROWS, WIDTH])], name="linear")
    imports = {"": OPSET}
    graph = ir.Graph([x], product.outputs, nodes=[product], initializers=[weight], opset_imports=imports, name="linear")
    return ir.Model(graph, ir_version=10)


def _samples() -> Sequence[dict[str, np.ndarray]]:
    """Activations from 1 down to -0.1, so that there is a zero point and the first rows hold the largest of all."""
    return [{"x": np.linspace(1, -0.1, ROWS * WIDTH, dtype=np.float32).reshape(ROWS, WIDTH)}]
