"""A model that is loaded in ONNX Runtime."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from qcompile.backends.feeds import TEXT, Declared, check_feed
from qcompile.backends.onnxruntime.empty_batches import aborts_file
from qcompile.errors import InputError, ModelError
from qcompile.memory import return_freed_memory
from qcompile.session import Feed, check_threads

if TYPE_CHECKING:
    import onnxruntime

Optimization = Literal["disabled", "basic", "extended", "all"]

_CHECK = "Check the shapes, and that indices lie inside of their tables"

_LAST_OPSET = re.compile(
    r"Opset (?P<given>\d+) is under development"
    r".*official support for domain ai\.onnx is till opset (?P<last>\d+)",
    re.DOTALL,
)
"""What ONNX Runtime says of a model in an opset that is newer than it is, behind a path of its own source."""

_FIRST_OPSET, _USUAL_OPSET = 7, 23
"""The first opset of ai.onnx that ONNX Runtime guarantees, and the one that models are converted to."""

_NUMPY_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
}


@dataclasses.dataclass(frozen=True)
class OnnxRuntimeSession:
    """Runs feeds on the CPU, after it has checked them.

    Attributes:
        inference: the loaded model.
        shared: weights that it reads where they are; they live as long as it does.
        aborts_on_empty: says whether an input without elements may end the process; asked when there is one.
    """

    inference: onnxruntime.InferenceSession
    shared: tuple[onnxruntime.OrtValue, ...] = dataclasses.field(repr=False)
    aborts_on_empty: Callable[[], bool] = dataclasses.field(repr=False)

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Run the model: input name -> array, to output name -> array.

        Raises InputError for a missing or unknown input, for a type or shape that is not the input's, when a kernel
        refuses the values, and for an input without elements that could end the process.
        """
        check_feed(feed, {each.name: _declared(each) for each in self.inference.get_inputs()})
        empty = next((name for name, array in feed.items() if array.size == 0), None)
        if empty is not None and self.aborts_on_empty():
            reason = "it is empty, and ONNX Runtime ends the whole process on an empty batch of an LSTM or GRU"
            raise InputError(f"input {empty!r}", reason, "Run it where there is something to run it on")
        names = [each.name for each in self.inference.get_outputs()]
        try:
            results = self.inference.run(names, dict(feed))
        except runtime_errors() as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
            raise InputError(f"feed of {shapes}", f"ONNX Runtime refuses it: {error}", _CHECK) from error
        return dict(zip(names, results, strict=True))


def open_file(
    path: Path,
    *,
    threads: int | None,
    optimization: Optimization,
    weights: Mapping[str, np.ndarray] | None = None,
    few_runs: bool = False,
    name: str | None = None,
    aborts_on_empty: Callable[[], bool] | None = None,
) -> OnnxRuntimeSession:
    """Load a model file; raises ModelError when ONNX Runtime refuses it, RecipeError for a wrong `threads`.

    Args:
        path: the file.
        threads: number of threads within an operator; None: one per core.
        optimization: of the graph, by ONNX Runtime.
        weights: initializers of the file that are in memory already, by name: of a type that `can_share` takes. They
            are not loaded again; what a kernel packs for itself, it copies all the same.
        few_runs: for less memory, kernels pack their weights in every run, not once into a copy, and nodes run in the
            order of the graph.
        name: what errors call the model; None: by its file, which is for those that the user knows.
        aborts_on_empty: see `OnnxRuntimeSession`; None: by the file, which stays where it is.
    """
    import onnxruntime

    return_freed_memory()
    options = session_options(threads, optimization)
    if few_runs:
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_cpu_mem_arena = False  # it grows by powers of two
        # That of the graph, where a value ends with its last reader; by default those that lead to outputs come late.
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    shared = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in (weights or {}).items()}
    for name, value in shared.items():
        options.add_initializer(name, value)
    try:
        inference = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except runtime_errors() as error:
        said, mend = _said(str(error).replace(f"Load model from {path} failed:", ""))
        reason = f"ONNX Runtime {onnxruntime.__version__} refuses it: {said}"
        raise ModelError(f"model {name or path.name}", reason, mend) from error
    aborts = aborts_on_empty or functools.partial(aborts_file, path)
    return OnnxRuntimeSession(inference, tuple(shared.values()), aborts)


def _said(message: str) -> tuple[str, str]:
    """Return what ONNX Runtime says of a model that it refuses, and the mend; of an opset that it lacks, the last."""
    newer = _LAST_OPSET.search(message)
    if newer is not None:
        given, last = newer["given"], newer["last"]
        mend = f"Export the model again in an opset from {_FIRST_OPSET} to {last}, such as opset_version={_USUAL_OPSET}"
        return f"its opset of ai.onnx is {given}, and the last that is supported is {last}", mend
    return message, "Check the model with onnx.checker; if it is valid, this is a gap of the runtime or of its lowering"


def available_providers() -> list[str]:
    """Names of the execution providers of this build of ONNX Runtime."""
    import onnxruntime

    found: list[str] = onnxruntime.get_available_providers()
    return found


def can_share(array: np.ndarray) -> bool:
    """Tell whether ONNX Runtime can read the array where it is."""
    return array.flags.c_contiguous and array.dtype.name in _NUMPY_TYPES.values()


def session_options(threads: int | None, optimization: Optimization) -> onnxruntime.SessionOptions:
    """Options of a session: number of threads within an operator (None: one per core), and graph optimization.

    Raises RecipeError for a number of threads that is not valid.
    """
    import onnxruntime

    check_threads(threads)
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    options.log_severity_level = 3
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = {
        "disabled": level.ORT_DISABLE_ALL,
        "basic": level.ORT_ENABLE_BASIC,
        "extended": level.ORT_ENABLE_EXTENDED,
        "all": level.ORT_ENABLE_ALL,
    }[optimization]
    return options


def runtime_errors() -> tuple[type[Exception], ...]:
    """Every exception of ONNX Runtime; they have no common base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return tuple(value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception))


def _declared(value: onnxruntime.NodeArg) -> Declared:
    shape = [size if isinstance(size, int) else None for size in value.shape]
    return Declared(TEXT if value.type == "tensor(string)" else _NUMPY_TYPES.get(value.type), shape)
