"""The weights of a Hugging Face folder: safetensors files, read tensor by tensor when somebody asks for one."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from qcompile.errors import ModelError, UnsafeModelError
from qcompile.plain_files import check_plain

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"

_DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""Types of weights, as safetensors calls them; integers belong to models that came quantized in some other way."""

_MOST_HEADER = 100 * 10**6
"""Bytes that the header of a file may have; safetensors' own limit."""

_DOWNLOAD_AGAIN = "Download the folder again: the file is truncated or damaged"


def open_checkpoint(folder: Path) -> dict[str, ir.LazyTensor]:
    """Return every tensor of a folder by its name; each is float32, and read from its file at each use.

    Files are read in pieces, not mapped into memory: what is mapped counts as memory of the process, and the weights
    may be larger than that.

    Raises:
        UnsafeModelError: there are only weights in files of pickled code, or a shard outside of the folder.
        ModelError: a file is missing, truncated or no safetensors, or a tensor is not of floating point.
    """
    tensors: dict[str, ir.LazyTensor] = {}
    for file in _files(folder):
        tensors.update(_tensors(file))
    return tensors


def _files(folder: Path) -> list[Path]:
    if (folder / _SINGLE).exists():
        return [folder / _SINGLE]
    index = folder / _INDEX
    if not index.exists():
        if any(folder.glob("pytorch_model*.bin")):
            reason = "its weights are in pytorch_model.bin, and reading that can run code"
            raise UnsafeModelError(str(folder), reason, "Save it with save_pretrained(), which writes safetensors")
        raise ModelError(str(folder), f"there is no {_SINGLE} in it", "Give a folder as save_pretrained() writes it")
    try:
        check_plain(index)
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(str(index), f"it is no index of weights ({error})", _DOWNLOAD_AGAIN) from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise UnsafeModelError(str(index), f"it names a file outside of its folder: {name!r}", _DOWNLOAD_AGAIN)
    return [folder / name for name in names]


def _tensors(file: Path) -> dict[str, ir.LazyTensor]:
    header, start = _header(file)
    size = file.stat().st_size - start
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            kind, shape = str(entry["dtype"]), tuple(int(each) for each in entry["shape"])
            first, last = (int(each) for each in entry["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(str(file), f"tensor {name!r} is not described ({error})", _DOWNLOAD_AGAIN) from error
        if kind not in _DTYPES:
            reason = f"it is {kind}, and weights are F32, F16, BF16 or F64"
            raise ModelError(f"tensor {name!r} of {file.name}", reason, "Give the model as it was before quantization")
        dtype = _DTYPES[kind]
        if not (
            0 <= first <= last <= size and last - first == math.prod(shape) * dtype.itemsize and min((0, *shape)) >= 0
        ):
            raise ModelError(str(file), f"tensor {name!r} does not lie inside of the file", _DOWNLOAD_AGAIN)
        read = functools.partial(_read, file, start + first, shape, dtype, name)
        found[name] = ir.LazyTensor(read, ir.DataType.FLOAT, ir.Shape(shape), name=name)
    return found


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """Return the description of the tensors, and where their data starts.

    Format: eight bytes of length, little endian, and so many of JSON (https://huggingface.co/docs/safetensors).
    """
    try:
        check_plain(file)
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(_MOST_HEADER, file.stat().st_size):
                raise ValueError(f"its header would have {length} bytes")
            header = json.loads(stream.read(length))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(str(file), f"it is no safetensors file ({error})", _DOWNLOAD_AGAIN) from error
    if not isinstance(header, dict):
        raise ModelError(str(file), "it is no safetensors file (its header is no object)", _DOWNLOAD_AGAIN)
    return header, 8 + length


def _read(file: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> ir.TensorProtocol:
    # Of two bytes each as integers: numpy reads no types of others from files.
    stored = np.dtype(f"u{dtype.itemsize}")
    try:
        with file.open("rb") as stream:
            stream.seek(offset)
            data = np.fromfile(stream, stored, math.prod(shape))
    except OSError as error:
        raise ModelError(f"tensor {name!r} of {file}", f"it cannot be read: {error}", _DOWNLOAD_AGAIN) from error
    if data.size != math.prod(shape):
        raise ModelError(f"tensor {name!r} of {file}", "the file has become shorter", _DOWNLOAD_AGAIN)
    return ir.tensor(data.view(dtype).astype(np.float32, copy=False).reshape(shape), name=name)
