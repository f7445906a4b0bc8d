"""What `verify` needs where an artifact goes: the quantized graph before a backend lowered it, and one input.

The weights of that graph are, nearly all, bytes of the files that the runtime reads. They are not stored again: the
graph says where they lie, as external data does.
"""

from __future__ import annotations

import contextlib
import mmap
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from qcompile import frontend
from qcompile.errors import ArtifactError
from qcompile.session import Feed

GRAPH = "portable.onnx"
WEIGHTS = "portable.data"
SAMPLE = "portable.npz"

_LARGE = 1024
"""Bytes above which a weight is kept outside of the graph."""

_PREFIX = 64
_MOST_CANDIDATES = 64
"""How many places that begin like a weight are compared with it: weights of mostly zeros begin alike everywhere."""


def write_portable(model: ir.Model, sample: Feed, folder: Path, files: Iterable[str]) -> None:
    """Write a quantized graph, and an input to compare it on, beside the files of the runtime.

    Args:
        model: the portable graph; it is not changed. One of its weights is in memory at a time.
        sample: input name -> array.
        folder: of the artifact.
        files: those that hold weights, inside of the folder.
    """
    copy = model.clone()
    with contextlib.ExitStack() as stack:
        written = {
            name: stack.enter_context(_mapped(folder / name)) for name in files if (folder / name).stat().st_size
        }
        rest = stack.enter_context((folder / WEIGHTS).open("wb"))
        places = dict.fromkeys(written, 0)
        for name, value in copy.graph.initializers.items():
            if value.const_value is not None and value.const_value.nbytes > _LARGE:
                value.const_value = _stored(value.const_value, name, folder, written, places, rest)
    if not (folder / WEIGHTS).stat().st_size:
        (folder / WEIGHTS).unlink()
    ir.save(copy, folder / GRAPH)
    with zipfile.ZipFile(folder / SAMPLE, "w") as archive:  # numpy.savez has no room for an input called "file"
        for name, array in sample.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                texts = array.dtype.kind == "O"  # objects would be pickled
                np.lib.format.write_array(file, array.astype(str) if texts else array, allow_pickle=False)


def read_portable(folder: Path) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """Return what `write_portable` wrote into the folder of an artifact; the graph is checked as any model is.

    Raises:
        ArtifactError: the input cannot be read.
        UnsafeModelError, ModelError: the graph reaches outside of the folder, or cannot be read.
    """
    try:
        with np.load(folder / SAMPLE, allow_pickle=False) as arrays:
            sample = dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ArtifactError(str(folder / SAMPLE), f"it cannot be read: {error}", "Compile the model again") from error
    return frontend.trace(folder / GRAPH), sample


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


def _stored(
    tensor: ir.TensorProtocol,
    name: str,
    folder: Path,
    written: Mapping[str, mmap.mmap],
    places: dict[str, int],
    rest: BinaryIO,
) -> ir.ExternalTensor:
    """Return the tensor as a part of a file that holds its bytes already, else of `rest`."""
    content = tensor.tobytes()
    location, offset = WEIGHTS, rest.tell()
    for file, mapped in written.items():
        found = _find(mapped, content, places[file])
        if found is not None:
            location, offset = file, found
            places[file] = found + len(content)  # the next weight of the graph is likely to lie behind
            break
    else:
        rest.write(content)
    return ir.ExternalTensor(
        location, offset, len(content), tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name, base_dir=folder
    )


def _find(mapped: mmap.mmap, content: bytes, start: int) -> int | None:
    """Return where the content lies in a file; looked for from a place on, then from the beginning."""
    candidates = 0
    for first, last in ((start, len(mapped)), (0, min(start + _PREFIX, len(mapped)))):
        place = mapped.find(content[:_PREFIX], first, last)
        while place >= 0 and candidates < _MOST_CANDIDATES:
            if mapped[place : place + len(content)] == content:
                return place
            candidates += 1
            place = mapped.find(content[:_PREFIX], place + 1, last)
    return None
