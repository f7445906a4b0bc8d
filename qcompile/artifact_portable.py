"""What `verify` needs where an artifact goes: the quantized graph before a backend lowered it, and one input.

The weights of that graph are, nearly all, bytes of the files that the runtime reads, as they are or in another form,
such as transposed. They are not stored again: the graph says where they lie, as external data does, and how they are
read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from qcompile import frontend
from qcompile.artifact_portable_forms import FORMS, PLAIN, Form, read_as, restore
from qcompile.errors import ArtifactError
from qcompile.session import Feed

GRAPH = "portable.onnx"
WEIGHTS = "portable.data"
SAMPLE = "portable.npz"

_LARGE = 1024
"""Bytes above which a weight is kept outside of the graph."""

_WORTH_LOOKING = 2**14
"""Bytes below which a weight is not looked for in the files of the runtime: it would take longer than it saves."""

_PREFIX = 64
_MOST_MISSES = 64
"""How many weights are looked for in vain in one file, by reading all of it: a runtime that lays out one weight in
another way does so with most."""

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
        filled = [name for name in files if (folder / name).stat().st_size]
        mapped = {name: stack.enter_context(_mapped(folder / name)) for name in filled}
        written = [_Written(name, content, form) for form in FORMS.values() for name, content in mapped.items()]
        taken = _names(copy)
        rest = stack.enter_context((folder / WEIGHTS).open("wb"))
        for value in list(copy.graph.initializers.values()):
            if value.const_value is not None and value.const_value.nbytes > _LARGE:
                _store(value, folder, written, rest, taken)
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
            # texts were objects, which numpy would only read by running what is in the file
            sample = {name: each.astype(object) if each.dtype.kind == "U" else each for name, each in arrays.items()}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ArtifactError(str(folder / SAMPLE), f"it cannot be read: {error}", "Compile the model again") from error
    model = frontend.trace(folder / GRAPH)
    restore(model)
    return model, sample


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


@dataclasses.dataclass
class _Written:
    """A file of the runtime, in which weights are looked for in one form.

    Attributes:
        name: of the file.
        content: its bytes.
        form: of the weights.
        place: where the last weight that was found ends: the next of the graph is likely to lie there.
        misses: how many were not found.
    """

    name: str
    content: mmap.mmap
    form: Form
    place: int = 0
    misses: int = 0

    def find(self, weight: bytes) -> int | None:
        """Return where a weight lies, looked for from the place of the last on and then from the beginning."""
        if self.misses == _MOST_MISSES:
            return None
        ends = (self.place, len(self.content)), (0, min(self.place + _PREFIX, len(self.content)))
        for first, last in ends:
            found = self._find(weight, first, last)
            if found is not None:
                self.place = found + len(weight)
                return found
        self.misses += 1
        return None

    def _find(self, weight: bytes, first: int, last: int) -> int | None:
        place = self.content.find(weight[:_PREFIX], first, last)
        for _ in range(_MOST_CANDIDATES):
            if place < 0 or self.content[place : place + len(weight)] == weight:
                break
            place = self.content.find(weight[:_PREFIX], place + 1, last)
        else:
            return None
        return place if place >= 0 else None


def _names(model: ir.Model) -> set[str]:
    """Return the names of all values and nodes."""
    found = {str(value.name) for graph in model.graphs() for value in (*graph.inputs, *graph.initializers.values())}
    for node in model.graph.all_nodes():
        found |= {str(node.name), *(str(value.name) for value in node.outputs)}
    return found


def _store(value: ir.Value, folder: Path, written: list[_Written], rest: BinaryIO, taken: set[str]) -> None:
    """Let an initializer be a part of a file that holds its bytes in some form already, else of `rest`.

    What was found last in is looked into first: most weights of a model are written alike.
    """
    tensor = value.const_value
    assert tensor is not None
    own = value.is_graph_output() or value.is_graph_input()  # which cannot be computed from another
    for each in written if tensor.nbytes >= _WORTH_LOOKING else ():
        if each.misses == _MOST_MISSES or not each.form.fits(tensor) or (own and each.form != PLAIN):
            continue
        held = each.form.of(tensor)
        place = each.find(held.tobytes())
        if place is not None:
            written.remove(each)
            written.insert(0, each)
            part = _part(held, str(value.name), folder, each.name, place)
            if each.form == PLAIN:
                value.const_value = part
            else:
                read_as(value, part, each.form, taken)
            return
    value.const_value = _part(tensor, str(value.name), folder, WEIGHTS, rest.tell())
    rest.write(tensor.tobytes())


def _part(tensor: ir.TensorProtocol, name: str, folder: Path, file: str, place: int) -> ir.ExternalTensor:
    shape = ir.Shape(tensor.shape.numpy())
    return ir.ExternalTensor(file, place, tensor.nbytes, tensor.dtype, shape=shape, name=name, base_dir=folder)
