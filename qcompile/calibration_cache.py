"""Statistics kept between runs, in a folder, under the hash of everything that they depend on."""

from __future__ import annotations

import hashlib
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.calibration_statistics import ChannelStatistics
from qcompile.errors import CalibrationError
from qcompile.graph import all_nodes


def fingerprint(model: ir.Model, *, weights: bool = True) -> str:
    """Return the sha256 of the model's graph and weights; neither metadata nor the file it came from count.

    Without `weights`, two models that differ in nothing but the numbers in their initializers have the same.
    """
    digest = hashlib.sha256(repr(sorted(model.opset_imports.items())).encode())
    for value in [*model.graph.inputs, *model.graph.outputs]:
        digest.update(f"{value.name} {value.dtype} {value.shape}".encode())
    for node in all_nodes(model):
        proto = ir.to_proto(node)
        proto.ClearField("metadata_props")
        proto.ClearField("doc_string")
        digest.update(proto.SerializeToString(deterministic=True))
    for function in model.functions.values():
        digest.update(ir.to_proto(function).SerializeToString(deterministic=True))
    for name, value in sorted(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None:
            digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
            if weights:
                digest.update(tensor.tobytes())
    return digest.hexdigest()


def load(path: pathlib.Path, values: Collection[str]) -> tuple[dict[str, ChannelStatistics], set[int]] | None:
    """Return the statistics of the values of these names, and the numbers of the samples that they are of.

    None when the file is not there or damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            names = [str(name) for name in stored["names"]]
            found = {name: _restore(stored, index) for index, name in enumerate(names)}
            used = {int(index) for index in stored["used"]}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return (found, used) if set(found) == set(values) else None


def _restore(stored: Mapping[str, npt.NDArray[Any]], index: int) -> ChannelStatistics:
    gram = stored.get(f"{index}.gram")
    fields = {field: stored[f"{index}.{field}"] for field in ("minimum", "maximum", "mean", "rows")}
    return ChannelStatistics(**fields, count=int(stored[f"{index}.count"]), gram=gram)


def store(path: pathlib.Path, statistics: Mapping[str, ChannelStatistics], used: Collection[int]) -> None:
    """Write the statistics, and the numbers of the samples that they are of; a reader sees the whole file or none.

    Raises:
        CalibrationError: the folder cannot be written.
    """
    arrays: dict[str, Any] = {"names": np.array(list(statistics)), "used": np.array(sorted(used), np.int64)}
    for index, found in enumerate(statistics.values()):
        for field in ("minimum", "maximum", "mean", "rows", "count"):
            arrays[f"{index}.{field}"] = getattr(found, field)
        if found.gram is not None:
            arrays[f"{index}.gram"] = found.gram
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            np.savez(file, **arrays)
        os.replace(file.name, path)
    except OSError as error:
        reason = f"statistics cannot be kept there ({error})"
        raise CalibrationError(
            f"calibration cache {path.parent}", reason, "Name a folder that can be written"
        ) from error
