"""Packages of machine code: what AOTInductor compiles of an artifact, once, for the device that is here.

A package holds its weights, and its code is run when it is loaded: it is for those who trust whoever made it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import sympy
import torch

from qcompile import processor
from qcompile.backends.fx import lower
from qcompile.backends.fx.types import tensor_of
from qcompile.backends.onnx_files import MODEL_FILE
from qcompile.backends.triton.lowering import prepared, read
from qcompile.backends.triton.runtime import device
from qcompile.backends.triton.session import TorchSession, session_of
from qcompile.errors import ModelError, UnsupportedError, first_line
from qcompile.quiet import quiet
from qcompile.session import Feed, check_threads

PACKAGE_FILE = "model.pt2"
_METADATA = "qcompile"
_EXTENSIONS = ("avx", "amx", "fma", "sve", "asimd")
"""How what a processor can do with vectors is called in Linux: code for one that can do more would stop the process."""


def compile_package(model_path: Path, samples: Sequence[Feed]) -> str:
    """Compile a written model into a package beside it; return the name of its file.

    Every dim of an input that has no number in the model stays free. Dims that the code takes to be equal are
    written down, and `open_package` holds feeds to it.

    Args:
        model_path: file of the model.
        samples: feeds to trace with: the first without a size of 0 or 1 in a free dim, of which torch makes a constant;
            the last is made larger there, where none is. On a card kernels are timed on it.

    Raises:
        UnsupportedError: torch cannot export or compile the model.
    """
    model = read(model_path)
    module = lower(prepared(model)).to(device())
    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    sample = next((each for each in samples if _is_general(inputs, each)), samples[-1])
    given = tuple(_example(value, sample[str(value.name)]) for value in inputs)
    path = model_path.with_name(PACKAGE_FILE)
    with quiet():
        try:
            with torch.inference_mode():
                module(*given)
            program = torch.export.export(module, given, dynamic_shapes=tuple(map(_free_dims, inputs)))
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs=_settings(_sizes(program, inputs))
            )
        except (RuntimeError, ValueError, TypeError) as error:
            reason = f"torch cannot compile it ahead of time: {first_line(error)}"
            raise UnsupportedError(f"model {model_path.name}", reason, "Leave aot out") from error
    return path.name


def open_package(path: Path, *, threads: int | None = None) -> TorchSession:
    """Load a package that lies beside its model; its code is run.

    Raises ModelError for a file that is no package of qcompile, and for one that was compiled for another device.
    """
    check_threads(threads)
    said = _said(path)
    if said["device"] != _device():
        reason = f"it was compiled for {said['device']}, and this is {_device()}"
        raise ModelError(f"package {path.name}", reason, "Load the artifact without trust_input, or compile it here")
    lacking = sorted(set(said["extensions"]) - processor.flags())
    if lacking:
        reason = f"it was compiled for a processor with {', '.join(lacking)}, which this one does not have"
        raise ModelError(f"package {path.name}", reason, "Load the artifact without trust_input, or compile it here")
    with quiet():
        compiled = torch._inductor.aoti_load_package(str(path))
    model = read(path.with_name(MODEL_FILE))
    graph = functools.cache(lambda: lower(prepared(model)).to(device()))
    return session_of(Package(compiled, said["sizes"], said["largest"], graph), model, threads)


@dataclasses.dataclass(frozen=True)
class Package:
    """A loaded package: called as the lowered module is.

    The code does not ask whether sizes are those that it was compiled for: it would read what is not there.

    Attributes:
        compiled: what torch loaded.
        sizes: input name -> a number or an expression of names for each dim, such as s17 or s17 + s70.
        largest: name of a size -> the largest that the model takes.
        graph: loads the lowered model, which computes what is empty: the code divides by sizes.
    """

    compiled: Any
    sizes: Mapping[str, Sequence[int | str]]
    largest: Mapping[str, int]
    graph: Callable[[], Callable[..., Any]]

    def __call__(self, *given: torch.Tensor) -> dict[str, Any]:
        """Run the code; raises ValueError for tensors of sizes that it is not made for."""
        dims = [
            (f"dim {axis} of {name!r} is {found}", str(size), found)
            for (name, sizes), tensor in zip(self.sizes.items(), given, strict=True)
            for axis, (size, found) in enumerate(zip(sizes, tensor.shape, strict=True))
        ]
        known: dict[str, int] = {}
        for _, size, found in dims:
            if size.isidentifier():
                known.setdefault(size, found)
        for subject, size, found in dims:
            wanted = known.get(size)
            wanted = int(sympy.sympify(size, locals=_symbols(known)).subs(known)) if wanted is None else wanted
            if found != wanted:
                raise ValueError(f"{subject} where the other inputs make it {wanted}")
            if found > self.largest.get(size, found):
                raise ValueError(f"{subject}, more than {self.largest[size]}")
        run = self.compiled if all(found for _, _, found in dims) else self.graph()
        try:
            made: dict[str, Any] = run(*(tensor.contiguous() for tensor in given))
        except RuntimeError as error:
            raise ValueError(first_line(error)) from error  # behind it are pages of addresses
        return made


def _symbols(names: Collection[str]) -> dict[str, sympy.Symbol]:
    return {name: sympy.Symbol(name) for name in names}


def _is_general(inputs: Sequence[ir.Value], sample: Feed) -> bool:
    """Whether no free dim has a size of which torch makes a constant."""
    return all(sample[str(value.name)].shape[axis] > 1 for value in inputs for axis in _free_dims(value))


def _example(value: ir.Value, array: np.ndarray) -> torch.Tensor:
    """A tensor to trace with: what torch exports of a size of 0 or 1 holds for that size alone."""
    dims = value.shape if value.shape is not None else array.shape
    shape = [size if isinstance(dim, int) else max(size, 2) for dim, size in zip(dims, array.shape, strict=True)]
    return tensor_of(np.resize(array, shape), f"input {value.name!r}").to(device())


def _free_dims(value: ir.Value) -> dict[int, Any]:
    """Torch's words for the dims of an input that the model does not fix."""
    dynamic = torch.export.Dim.DYNAMIC
    return {axis: dynamic for axis, dim in enumerate(value.shape or ()) if not isinstance(dim, int)}


def _sizes(program: torch.export.ExportedProgram, inputs: Sequence[ir.Value]) -> dict[str, Any]:
    """Which dims of the inputs are equal, and how large they may be, as tracing has found."""
    nodes = {node.name: node for node in program.graph.nodes}
    traced = [nodes[str(name)].meta["val"].shape for name in program.graph_signature.user_inputs]
    sizes = {
        str(value.name): [size if isinstance(size, int) else str(size) for size in shape]
        for value, shape in zip(inputs, traced, strict=True)
    }
    ranges = {str(symbol): found.upper for symbol, found in program.range_constraints.items()}
    return {"sizes": sizes, "largest": {name: int(upper) for name, upper in ranges.items() if upper.is_Integer}}


def _settings(sizes: Mapping[str, Any]) -> dict[str, Any]:
    extensions = sorted(flag for flag in processor.flags() if flag.startswith(_EXTENSIONS))
    said = {"device": _device(), "extensions": extensions, **sizes}
    # As many threads as whoever runs it asks for, not as there are here.
    return {"aot_inductor.metadata": {_METADATA: json.dumps(said)}, "cpp.threads": 1}


def _said(path: Path) -> dict[str, Any]:
    """What `_settings` wrote; nothing of the package is run for it."""
    try:
        with zipfile.ZipFile(path) as archive:
            (name, *_) = [name for name in archive.namelist() if name.endswith("wrapper_metadata.json")]
            found: dict[str, Any] = json.loads(json.loads(archive.read(name))[_METADATA])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"package {path.name}", f"it cannot be read: {error}", "Compile the model again") from error
    return found


def _device() -> str:
    """What machine code is for."""
    if device() == "cpu":
        return f"the processor, {processor.architecture()}"
    major, minor = torch.cuda.get_device_capability()
    return f"CUDA, compute capability {major}.{minor}"
