"""A decoder as a GGUF file: F16, or blocks of 32 weights in 8 or 4 bits, as the gguf package quantizes them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import gguf
import numpy as np
import onnx_ir as ir

from qcompile.artifact_gguf_tokenizer import add_tokenizer
from qcompile.errors import ArtifactError, ModelError, UnsupportedError
from qcompile.frontend.gguf_config import configuration, metadata_of
from qcompile.frontend.gguf_header import Field, Header, TensorPlace
from qcompile.frontend.gguf_names import Names

_Q = gguf.GGMLQuantizationType
_FILE_TYPES = {
    "F16": (_Q.F16, gguf.LlamaFileType.MOSTLY_F16),
    "Q8_0": (_Q.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "Q4_0": (_Q.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
KINDS = tuple(_FILE_TYPES)
"""What `write_gguf` writes."""

_VOCABULARY = tuple(
    f"{gguf.TENSOR_NAMES[which]}.weight" for which in (gguf.MODEL_TENSOR.TOKEN_EMBD, gguf.MODEL_TENSOR.OUTPUT)
)
"""Tensors with a row for each token, which stay at 8 bits: the loss is large there, and they are read by the row."""

_NOT_COMPUTED_WITH = frozenset(
    {
        "architectures",
        "attention_dropout",
        "attn_pdrop",
        "bos_token_id",
        "dtype",
        "embd_pdrop",
        "eos_token_id",
        "initializer_range",
        "pad_token_id",
        "pretraining_tp",
        "resid_pdrop",
        "transformers_version",
        "unk_token_id",
        "use_cache",
    }
)
"""Settings of training and of generation, which GGUF has elsewhere or does not have."""

_OTHER_FORMAT = "Write another output_format"
_LOOK = "Look at how the model was trained or converted"


class AsItIs(Protocol):
    """Has the tensors of a file that need not be quantized again."""

    def __call__(self, architecture: str, tensor: str, kind: gguf.GGMLQuantizationType, /) -> np.ndarray | None:
        """Return the bytes of a tensor, rows of uint8, where the file has it for this architecture in this type."""
        ...


def write_gguf(
    config: Any,
    tensors: Mapping[str, ir.TensorProtocol],
    tokenizer_folder: Path | None,
    path: Path,
    kind: str,
    *,
    as_it_is: AsItIs = lambda *_: None,
) -> None:
    """Write a decoder as a GGUF file; one weight at a time is in memory.

    Matrices are written as `kind`, those with a row for each token in at least 8 bits, those whose rows do not divide
    into blocks of 32 as F16, and vectors as F32.

    Args:
        config: of transformers.
        tensors: float, under the names and in the shapes of transformers' `state_dict`.
        tokenizer_folder: with tokenizer.json and tokenizer_config.json; None: the file has no tokenizer, and no
            runtime can talk with it.
        path: of the file, which appears when it is complete.
        kind: one of KINDS.
        as_it_is: has tensors of the file that the weights come from, which are copied; by default there is none.

    Raises:
        UnsupportedError: GGUF cannot say what the model computes, or how its tokenizer splits text.
        ModelError: a weight is missing, or not finite, or beyond the range of float16.
        ArtifactError: the file cannot be written.
    """
    if kind not in _FILE_TYPES:
        raise UnsupportedError(f"kind {kind!r}", f"is none of {', '.join(KINDS)}", "Choose one of them")
    architecture, numbers = metadata_of(config)
    names = Names.of(config, architecture, path.name)
    whole, file_type = _FILE_TYPES[kind]
    writer = gguf.GGUFWriter(None, architecture)
    writer.add_type("model")
    writer.add_name(path.stem)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in numbers.items():
        _add_number(writer, key, value)
    if tokenizer_folder is None:
        _add_token_ids(writer, config)
    else:
        add_tokenizer(writer, tokenizer_folder, config.vocab_size)
    stored = _stored_names(names)
    _check_config(config, architecture, writer, stored, path.name)
    places = {name: _place(name, names.shapes[parameter], whole) for name, parameter in stored.items()}
    for name, place in places.items():
        raw = np.dtype(np.float32 if place.kind == _Q.F32 else np.float16)
        writer.add_tensor_info(name, place.shape, raw, place.nbytes, place.kind)
    part = path.with_name(f"{path.name}.part")
    encoded = (
        _encoded(names, name, parameter, tensors, places[name].kind)
        if (rows := as_it_is(architecture, name, places[name].kind)) is None
        else rows
        for name, parameter in stored.items()
    )
    try:
        _write(writer, part, encoded)
        part.replace(path)
    except OSError as error:
        raise ArtifactError(str(path), f"cannot be written ({error})", "Make room, or choose another path") from error
    finally:
        writer.close()
        part.unlink(missing_ok=True)


def _write(writer: gguf.GGUFWriter, part: Path, encoded: Iterable[np.ndarray]) -> None:
    writer.write_header_to_file(part)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for rows in encoded:
        writer.write_tensor_data(rows)
    for stream in writer.fout or ():
        stream.flush()
        os.fsync(stream.fileno())


def _encoded(names: Names, name: str, parameter: str, tensors: Mapping[str, ir.TensorProtocol], kind: _Q) -> np.ndarray:
    """Return the bytes of a tensor, as its type has them."""
    if parameter not in tensors:
        raise ModelError(parameter, "is not among the weights", "Give every parameter of the model")
    array = tensors[parameter].numpy().astype(np.float32)
    if not np.isfinite(array).all():
        raise ModelError(parameter, "has numbers that are not finite", _LOOK)
    moved = names.disassemble(name, parameter, array)
    if moved is None:
        reason = "GGUF has this weight in another form, which qcompile does not write"
        raise UnsupportedError(parameter, reason, _OTHER_FORMAT)
    with np.errstate(over="ignore", invalid="ignore"):  # told below
        encoded = gguf.quantize(np.ascontiguousarray(moved), kind)
        finite = np.isfinite(gguf.dequantize(encoded, kind)).all()
    if not finite:
        raise ModelError(parameter, f"has numbers too large for the float16 in {kind.name}", _LOOK)
    return encoded


def _stored_names(names: Names) -> dict[str, str]:
    """Return what each tensor of the file is made of; a tied output layer is not written."""
    found: dict[str, str] = {}
    for tensor, parameter in names.of_gguf.items():
        if parameter in names.shapes and parameter not in names.shared:
            if parameter in found.values():
                raise UnsupportedError(parameter, "GGUF has it in several tensors", _OTHER_FORMAT)
            found[tensor] = parameter
    missing = names.shapes.keys() - names.shared.keys() - set(found.values())
    if missing:
        raise UnsupportedError(min(missing), "GGUF has no name for this weight", _OTHER_FORMAT)
    return found


def _place(name: str, shape: tuple[int, ...], whole: _Q) -> TensorPlace:
    """Return the type and size of a tensor; where it will begin is the writer's."""
    kind = _Q.F32 if len(shape) == 1 else _Q.F16 if shape[-1] % gguf.GGML_QUANT_SIZES[whole][0] else whole
    if kind == _Q.Q4_0 and name in _VOCABULARY:
        kind = _Q.Q8_0
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return TensorPlace(shape, kind, 0, int(np.prod(shape)) // block * size)


def _add_number(writer: gguf.GGUFWriter, key: str, value: bool | int | float) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    else:
        writer.add_float32(key, value)


def _add_token_ids(writer: gguf.GGUFWriter, config: Any) -> None:
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        number = getattr(config, f"{name}_token_id", None)
        if isinstance(number, int):
            writer.add_uint32(f"tokenizer.ggml.{key}_token_id", number)


def _check_config(
    config: Any, architecture: str, writer: gguf.GGUFWriter, stored: Mapping[str, str], subject: str
) -> None:
    """Raise UnsupportedError where transformers reads back another model from the metadata."""
    metadata = {
        key: Field(each.type, each.value, each.sub_type, len(each.value) if isinstance(each.value, list) else 0)
        for key, each in writer.kv_data[0].items()
        if not key.startswith("tokenizer.ggml.token") and not key.startswith("tokenizer.ggml.merges")
    }
    tensors = {name: TensorPlace((1,), _Q.F32, 0, 4) for name in stored}
    meant = config.to_dict()
    read = configuration(Header(metadata, tensors), architecture, subject).to_dict()
    for name in sorted(meant.keys() - _NOT_COMPUTED_WITH):
        if not name.startswith("_") and not _same(meant[name], read.get(name)):
            reason = f"GGUF cannot say that {name} is {meant[name]!r}: it would be read as {read.get(name)!r}"
            raise UnsupportedError(subject, reason, _OTHER_FORMAT)


def _same(meant: Any, read: Any) -> bool:
    """Whether a setting came back; GGUF has float32."""
    if isinstance(meant, dict) and isinstance(read, dict):
        return meant.keys() == read.keys() and all(_same(meant[name], read[name]) for name in meant)
    if isinstance(meant, float) and isinstance(read, (int, float)):
        return bool(np.float32(meant) == np.float32(read))
    return bool(meant == read)
