"""Packages of machine code: what AOTInductor compiles of an artifact, once, for the device that is here.

A package holds its weights, and its code is run when it is loaded: it is for those who trust whoever made it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch._inductor.utils import fresh_cache

from qcompile import processor
from qcompile.backends.fx import lower
from qcompile.backends.fx.types import tensor_of
from qcompile.backends.onnx_files import MODEL_FILE
from qcompile.backends.triton.lowering import prepared, read
from qcompile.backends.triton.runtime import device
from qcompile.backends.triton.session import TorchSession, session_of
from qcompile.backends.triton.size_guards import holds
from qcompile.errors import ModelError, UnsupportedError, first_line, raise_interrupt
from qcompile.quiet import quiet
from qcompile.session import Feed, check_threads

PACKAGE_FILE = "model.pt2"
_METADATA = "qcompile"
_EXTENSIONS = (
    *("avx", "amx", "fma", "f16c", "bmi", "sse", "ssse", "gfni", "vaes", "vpclmul", "movbe", "adx"),
    *("sve", "sme", "asimd", "i8mm", "bf16"),
)
"""How what a processor can do is called in Linux: code for one that can do more would stop the process."""


def compile_package(model_path: Path, samples: Iterable[Feed]) -> str:
    """Compile a written model into a package beside it; return the name of its file.

    Every dim of an input that has no number in the model stays free. What the code takes for granted of sizes all the
    same, such as that two are equal, is written down, and a `Package` asks.

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
    _check_tensors(inputs)
    for sample in samples:
        given = tuple(_example(value, sample[str(value.name)]) for value in inputs)
        if _is_general(inputs, sample):
            break
    path = model_path.with_name(PACKAGE_FILE)
    names = [str(node.target) for node in module.graph.nodes if node.op == "placeholder"]
    # Otherwise a copy of the weights would stay in torch's cache, where others may read it.
    with quiet(), fresh_cache():
        try:
            with torch.inference_mode():
                module(*given)
            program = torch.export.export(module, given, dynamic_shapes=tuple(map(_free_dims, inputs)))
            settings = _settings(dict(zip(names, (each.shape for each in given), strict=True)), program._guards_code)
            torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)
        except Exception as error:  # torch has no class for what it cannot do: also AssertionError, KeyError, ..
            raise_interrupt(error)
            reason = f"torch cannot compile it ahead of time: {_reason(error)}"
            raise UnsupportedError(f"model {model_path.name}", reason, "Leave aot out") from error
    return path.name


def _check_tensors(inputs: Sequence[ir.Value]) -> None:
    for value in inputs:
        if not isinstance(value.type, ir.TensorType) or value.shape is None:
            reason = "packages take tensors of known rank, and it is none"
            raise UnsupportedError(f"aot=True, input {value.name!r}", reason, "Leave aot out")


def _reason(error: Exception) -> str:
    """The line that says why; of a dim that is not free, which and what it is."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    return next((line.rstrip(".") for line in lines if "because" in line), first_line(error))


def open_package(path: Path, *, threads: int | None = None) -> TorchSession:
    """Load a package that lies beside its model; its code is run.

    Raises ModelError for a file that is no package of qcompile, and for one that was compiled for another device.
    """
    check_threads(threads)
    names, guards = _checked(path, _said(path))
    model = read(path.with_name(MODEL_FILE))
    with quiet():
        try:
            compiled = torch._inductor.aoti_load_package(str(path))
        except RuntimeError as error:
            raise ModelError(f"package {path.name}", first_line(error), "Compile the model again") from error
    graph = functools.cache(lambda: lower(prepared(model)).to(device()))
    return session_of(Package(compiled, tuple(names), tuple(guards), graph), model, threads)


@dataclasses.dataclass(frozen=True)
class Package:
    """A loaded package: called as the lowered module is.

    The code does not ask whether sizes are those that it was compiled for, and would read what is not there. For
    others, and where something is empty, the lowered model computes, which is loaded then, or refuses them.

    Attributes:
        compiled: what torch loaded.
        names: of its parameters, as the guards call them.
        guards: conditions on sizes, see `size_guards`.
        graph: loads the lowered model.
    """

    compiled: Any
    names: tuple[str, ...]
    guards: tuple[str, ...]
    graph: Callable[[], Callable[..., Any]]

    def __call__(self, *given: torch.Tensor) -> dict[str, Any]:
        """Run the code; raises ValueError where it finds an index outside of a table."""
        sizes = {name: tuple(tensor.shape) for name, tensor in zip(self.names, given, strict=True)}
        made: dict[str, Any]
        if not self.is_for(sizes):
            made = self.graph()(*given)
            return made
        try:
            made = self.compiled(*(tensor.contiguous() for tensor in given))
        except RuntimeError as error:
            raise ValueError(first_line(error)) from error  # behind it are pages of addresses
        return made

    def is_for(self, sizes: dict[str, tuple[int, ...]]) -> bool:
        """Whether the code is made for these sizes."""
        return all(map(all, sizes.values())) and all(holds(guard, sizes) for guard in self.guards)


def _is_general(inputs: Sequence[ir.Value], sample: Feed) -> bool:
    """Whether no free dim has a size of which torch makes a constant."""
    return all(sample[str(value.name)].shape[axis] > 1 for value in inputs for axis in _free_dims(value))


def _example(value: ir.Value, array: np.ndarray) -> torch.Tensor:
    """A tensor to trace with: what torch exports of a size of 0 or 1 holds for that size alone."""
    assert value.shape is not None
    shape = [size if isinstance(dim, int) else max(size, 2) for dim, size in zip(value.shape, array.shape, strict=True)]
    return tensor_of(np.resize(array, shape), f"input {value.name!r}").to(device())


def _free_dims(value: ir.Value) -> dict[int, Any]:
    """Torch's words for the dims of an input that the model does not fix."""
    dynamic = torch.export.Dim.DYNAMIC
    return {axis: dynamic for axis, dim in enumerate(value.shape or ()) if not isinstance(dim, int)}


def _settings(sizes: Mapping[str, Sequence[int]], guards: Sequence[str]) -> dict[str, Any]:
    """Settings of AOTInductor; raises ValueError for a guard that nobody can ask, or that the example does not meet."""
    unmet = [guard for guard in guards if not holds(guard, sizes)]
    if unmet:
        raise ValueError(f"it was traced for other sizes: {unmet[0]}")
    said = {"device": _device(), "extensions": _extensions(), "names": list(sizes), "guards": list(guards)}
    # An index outside of a table is found in what is compiled of small operators: within a thread of OpenMP it would
    # stop the process. Products and attention are torch's own, on all threads.
    return {"aot_inductor.metadata": {_METADATA: json.dumps(said)}, "cpp.threads": 1}


def _extensions() -> list[str]:
    return sorted(flag for flag in processor.flags() if flag.startswith(_EXTENSIONS))


def _said(path: Path) -> dict[str, Any]:
    """What `_settings` wrote; nothing of the package is run for it."""
    try:
        with zipfile.ZipFile(path) as archive:
            (name, *_) = [name for name in archive.namelist() if name.endswith("wrapper_metadata.json")]
            found: dict[str, Any] = json.loads(json.loads(archive.read(name))[_METADATA])
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ModelError(f"package {path.name}", f"it cannot be read: {error}", "Compile the model again") from error
    return found


def _checked(path: Path, said: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return names and guards of a package that is for this device; raises ModelError for another."""
    mend = "Load the artifact without trust_input, or compile it here"
    try:
        made_for, extensions, names, guards = (said[key] for key in ("device", "extensions", "names", "guards"))
    except (KeyError, TypeError) as error:
        raise ModelError(f"package {path.name}", "qcompile did not make it", "Compile the model again") from error
    if made_for != _device():
        raise ModelError(f"package {path.name}", f"it was compiled for {made_for}, and this is {_device()}", mend)
    lacking = sorted(set(extensions) - processor.flags())
    if lacking:
        reason = f"it was compiled for a processor with {', '.join(lacking)}, which this one does not have"
        raise ModelError(f"package {path.name}", reason, mend)
    return names, guards


def _device() -> str:
    """What machine code is for: the device, and torch, whose functions it calls."""
    version = torch.__version__
    if device() == "cpu":
        return f"the processor, {processor.architecture()}, torch {version}"
    major, minor = torch.cuda.get_device_capability()
    return f"CUDA, compute capability {major}.{minor}, torch {version}"
