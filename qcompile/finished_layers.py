"""Weights in groups that were solved, kept in files: they take no memory, and who starts again takes them up."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.errors import ArtifactError
from qcompile.solvers.grouped import Evidence, Grouped

Array = npt.NDArray[Any]

_HALF = 4
"""Bits of the integers that are kept two in a byte."""

_DAMAGED = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile)
"""What numpy raises on a file that was cut off, whose checksums are not those of its data, or that asks for a password
or a method of compression that there is not."""


@dataclasses.dataclass(frozen=True)
class FinishedLayers:
    """A folder with a file for each weight that was solved, called after everything that decides on the result.

    That is a digest of the weight, of what calibration saw, of the settings and of the versions: another recipe, model
    or data never meets a file of this one. A file appears under its name when it is whole. It is not brought to the
    disk first, as an artifact is: what a machine that loses its power leaves in part has wrong checksums, and is solved
    again.

    Attributes:
        folder: exists.
    """

    folder: Path

    def solved(
        self, weight: Array, seen: Evidence, settings: object, solve: Callable[[], Grouped]
    ) -> tuple[Grouped, Path]:
        """Return what was solved before, or is now, and the file that holds it.

        Args:
            weight: float32 [inputs, outputs].
            seen: what calibration saw of what it multiplies.
            settings: whatever else decides on the result; its `repr` says it.
            solve: is called where there is no file, or a damaged one.

        Raises:
            ArtifactError: there is no room or no right to write the file.
        """
        file = self.folder / f"{_digest(weight, seen, settings)}.npz"
        with contextlib.suppress(*_DAMAGED):
            kept = _load(file)
            if kept.integers.shape == weight.shape:
                return kept, file
        found = solve()
        try:
            _store(file, found)
        except OSError as error:
            mend = "Give an output folder with room and rights"
            raise ArtifactError(str(self.folder), f"a finished layer cannot be kept: {error}", mend) from error
        return found, file


@contextlib.contextmanager
def layers_beside(output: Path | None) -> Iterator[FinishedLayers]:
    """Keep finished layers beside the folder that is written, until it is; None: in a temporary folder.

    They are left there where the process is killed or interrupted by the user. To be entered by the only writer of
    `output`.
    """
    if output is None:
        with tempfile.TemporaryDirectory(prefix="qcompile-", ignore_cleanup_errors=True) as temporary:
            yield FinishedLayers(Path(temporary))
        return
    folder, interrupted = output.with_name(f".{output.name}.qcompile-layers"), False
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ArtifactError(str(output), f"it cannot be written: {error}", "Give a folder with rights") from error
    try:
        yield FinishedLayers(folder)
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        if not interrupted or not any(folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)


def tensor_of(file: Path, part: str, array: Array, dtype: ir.DataType, name: str) -> ir.TensorProtocol:
    """Return a part of a file as a tensor that is read each time somebody asks for its data.

    Args:
        file: as `FinishedLayers.solved` returned it.
        part: "integers", "scale" or "zero_point", which is zeros where the file has none.
        array: what is in it, for its shape.
        dtype: type of the tensor, into which the numbers fit.
        name: of the tensor.
    """
    shape = array.shape
    return ir.LazyTensor(functools.partial(_read, file, part, shape, dtype, name), dtype, ir.Shape(shape), name=name)


def _read(file: Path, part: str, shape: tuple[int, ...], dtype: ir.DataType, name: str) -> ir.TensorProtocol:
    with np.load(file) as stored:
        zeros = part == "zero_point" and part not in stored
        array = np.zeros(shape, np.int8) if zeros else _unpacked(stored, part).reshape(shape)
        return ir.tensor(array.astype(dtype.numpy(), copy=False), dtype, name=name)


def _digest(weight: Array, seen: Evidence, settings: object) -> str:
    digest = hashlib.sha256(repr((settings, np.__version__, _version())).encode())
    for array in (weight, seen.gram, seen.squares):
        if array is None:
            digest.update(b"-")
        else:
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _version() -> str:
    try:
        return importlib.metadata.version("qcompile")
    except importlib.metadata.PackageNotFoundError:  # it runs from its sources
        return ""


def _store(file: Path, found: Grouped) -> None:
    """Write the parts; integers of which each fits into 4 bits in half the room."""
    integers = found.integers
    parts: dict[str, Any] = {"scale": found.scale, "remark": np.array(found.remark), "shape": np.array(integers.shape)}
    if found.zero_point is not None:
        parts["zero_point"] = found.zero_point
    low = 0 if integers.dtype == np.uint8 else -(2 ** (_HALF - 1))
    if integers.size and low <= integers.min() and integers.max() < low + 2**_HALF:
        numbers = (integers.reshape(-1) - np.array(low, integers.dtype)).view(np.uint8)
        halves = np.zeros(-(-numbers.size // 2), np.uint8)
        halves[: numbers.size // 2] = numbers[1::2] << _HALF
        halves |= numbers[::2]
        parts["halves"], parts["low"] = halves, np.array(low, integers.dtype)
    else:
        parts["integers"] = integers
    unfinished = file.with_suffix(".part")
    with unfinished.open("wb") as stream:
        np.savez(stream, **parts)
    os.replace(unfinished, file)


def _load(file: Path) -> Grouped:
    with file.open("rb") as stream, np.load(stream) as stored:  # numpy leaves a damaged one open
        integers = _unpacked(stored, "integers").reshape(stored["shape"])
        zero_point = stored["zero_point"] if integers.dtype == np.uint8 else None
        return Grouped(integers, stored["scale"], zero_point, str(stored["remark"]))


def _unpacked(stored: Any, part: str) -> Array:
    if part != "integers" or "halves" not in stored:
        found: Array = stored[part]
        return found
    halves, low = stored["halves"], stored["low"]
    numbers = np.empty(2 * len(halves), low.dtype)
    numbers[::2] = halves & (2**_HALF - 1)
    numbers[1::2] = halves >> _HALF
    numbers += low
    return numbers[: int(np.prod(stored["shape"]))]
