"""Broken models: small real ones with bytes or fields changed at random, the same for one seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx
import onnx.parser
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, EncodeError, Message

_Field = tuple[Message, FieldDescriptor]

TEXTS = (
    """
    <ir_version: 10, opset_import: ["" : 20]>
    linear (float[N, 4] x) => (float[N, 3] y) <float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}> {
        z = MatMul(x, w)
        y = Relu(z)
    }
    """,
    """
    <ir_version: 8, opset_import: ["" : 13]>
    convolution (float[N, 1, 8, 8] x) => (float[N, flat] y) <
        float[2, 1, 3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9},
        float[2] b = {0.5, -0.5}, int64[2] shape = {0, -1}, float low = {0}, float high = {6}
    > {
        c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w, b)
        r = Clip(c, low, high)
        p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
        y = Reshape(p, shape)
    }
    """,
    """
    <ir_version: 10, opset_import: ["" : 21, "local" : 1]>
    function (float[N, 4] x) => (float[N, 4] y) { z = local.twice(x) y = local.twice(z) }
    <domain: "local", opset_import: ["" : 21, "local" : 1]>
    once (a) => (b) { c = Constant <value = float[1] {0.5}> () b = Mul(a, c) }
    <domain: "local", opset_import: ["" : 21, "local" : 1]>
    twice (a) => (b) { m = local.once(a) b = local.once(m) }
    """,
    """
    <ir_version: 9, opset_import: ["" : 18]>
    branches (float[N, 4] x, bool flag) => (float[N, 4] y, int64[2] s) <float[4] one = {1, 1, 1, 1}> {
        s = Shape(x)
        y = If (flag) <
            then_branch = then () => (float[N, 4] t) <float[4] two = {2, 2, 2, 2}> { t = Add(x, two) },
            else_branch = other () => (float[N, 4] e) {
                n = Constant <value_int = 3> ()
                k = Constant <value = bool {1}> ()
                e = Loop (n, k, x) <body = body (int64 i, bool go, float[N, 4] v) => (bool g, float[N, 4] o) {
                    g = Identity(go)
                    o = Mul(v, one)
                }>
            }
        >
    }
    """,
    """
    <ir_version: 7, opset_import: ["" : 11]>
    attention (float[N, S, 8] x, int64[N, S] mask) => (float[N, S, 8] y) <
        float[8, 8] w = {1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0,
            0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1},
        int64 zero = {0}, int64 first = {1}, float scale = {0.35}, float low = {-10000}, int64[1] mid = {1}
    > {
        dims = Shape(x)
        n = Gather(dims, zero)
        m = Unsqueeze <axes = [1]> (mask)
        f = Cast <to = 1> (m)
        bias = Mul(f, low)
        q = MatMul(x, w)
        t = Transpose <perm = [0, 2, 1]> (x)
        r = MatMul(q, t)
        h = Mul(r, scale)
        g = Add(h, bias)
        p = Softmax <axis = 2> (g)
        a = MatMul(p, x)
        count = Range(zero, n, first)
        big = ConstantOfShape <value = float[1] {0}> (mid)
        l = Add(a, big)
        y = LeakyRelu <alpha = 0.1> (l)
    }
    """,
)
"""Models of the operators that are read most: linears, convolutions, functions, branches and loops, shapes."""

_NUMBERS = (0, 1, -1, 2, 7, 255, 2**16, 2**31 - 1, -(2**31), 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**63))
_TEXTS = ("", "x", "\x00", "../secret", "/", "*/_ORT_MEM_ADDR_/*", "Loop", "Reshape", "é", "a" * 5000)


def seeds() -> list[bytes]:
    """Return the serialized models that mutants are made of."""
    return [onnx.parser.parse_model(text).SerializeToString() for text in TEXTS]


def mutant(seed: int, models: Sequence[bytes]) -> bytes:
    """Return one of the models, changed in one to three places."""
    generator = random.Random(seed)
    content = generator.choice(models)
    for _ in range(generator.choice((1, 1, 2, 3))):
        content = generator.choice(_CHANGES)(content, generator, models)
    return content


def _cut(content: bytes, generator: random.Random, _: Sequence[bytes]) -> bytes:
    return content[: generator.randint(0, len(content))]


def _overwrite(content: bytes, generator: random.Random, _: Sequence[bytes]) -> bytes:
    changed = bytearray(content)
    for _ in range(generator.randint(1, 8)):
        if changed:
            changed[generator.randrange(len(changed))] = generator.randrange(256)
    return bytes(changed)


def _insert(content: bytes, generator: random.Random, _: Sequence[bytes]) -> bytes:
    place = generator.randint(0, len(content))
    return content[:place] + generator.randbytes(generator.randint(1, 16)) + content[place:]


def _splice(content: bytes, generator: random.Random, models: Sequence[bytes]) -> bytes:
    other = generator.choice(models)
    start = generator.randint(0, len(other))
    place = generator.randint(0, len(content))
    return content[:place] + other[start : start + generator.randint(1, 200)] + content[place:]


def _edit(content: bytes, generator: random.Random, _: Sequence[bytes]) -> bytes:
    """Change a field, and leave the encoding whole: this is what gets past the parser."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
        fields = list(_fields(model))
        if fields:
            _edit_field(*generator.choice(fields), generator, fields)
        return model.SerializeToString()
    except (DecodeError, EncodeError, ValueError):  # nothing to edit, or a text or number that does not fit the field
        return content


_CHANGES: tuple[Callable[[bytes, random.Random, Sequence[bytes]], bytes], ...] = (
    _cut,
    _overwrite,
    _insert,
    _splice,
    *(_edit,) * 12,
)


def _fields(message: Message) -> Iterator[_Field]:
    for field, _ in message.ListFields():
        yield message, field
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for part in _parts(message, field):
                yield from _fields(part)


def _parts(message: Message, field: FieldDescriptor) -> Sequence[Message]:
    value = getattr(message, field.name)
    return value if field.is_repeated else (value,)


def _edit_field(message: Message, field: FieldDescriptor, generator: random.Random, fields: Sequence[_Field]) -> None:
    if generator.random() < 0.1:
        message.ClearField(field.name)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        _edit_part(message, field, generator, fields)
    elif not field.is_repeated:
        setattr(message, field.name, _scalar(field, generator, fields))
    elif generator.random() < 0.3:
        getattr(message, field.name).append(_scalar(field, generator, fields))
    else:
        values = getattr(message, field.name)
        values[generator.randrange(len(values))] = _scalar(field, generator, fields)


def _edit_part(message: Message, field: FieldDescriptor, generator: random.Random, fields: Sequence[_Field]) -> None:
    """Put a part of the model where another of its kind is, or take one away."""
    donors = [part for m, f in fields if f.message_type is field.message_type for part in _parts(m, f)]
    donor = type(donors[0])()
    donor.CopyFrom(generator.choice(donors))  # a message must not be copied into a part of itself
    parts = getattr(message, field.name)
    if not field.is_repeated:
        parts.CopyFrom(donor)
        return
    index, change = generator.randrange(len(parts)), generator.choice(("delete", "append", "replace"))
    if change == "delete":
        del parts[index]
    elif change == "append":
        parts.append(donor)
    else:
        parts[index].CopyFrom(donor)


def _scalar(field: FieldDescriptor, generator: random.Random, fields: Sequence[_Field]) -> Any:
    if field.type == FieldDescriptor.TYPE_STRING:
        names = [getattr(m, f.name) for m, f in fields if f.type == FieldDescriptor.TYPE_STRING and not f.is_repeated]
        return generator.choice([*names, *_TEXTS, generator.choice(_OPERATORS)])
    if field.type == FieldDescriptor.TYPE_BYTES:
        return generator.randbytes(generator.randint(0, 40))
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return generator.choice([0.0, float("nan"), float("inf"), -1e30, 1e-40])
    if field.type == FieldDescriptor.TYPE_ENUM:
        return generator.choice([each.number for each in field.enum_type.values])
    return generator.choice([generator.randint(-4, 30), *_NUMBERS])


_OPERATORS = sorted({schema.name for schema in onnx.defs.get_all_schemas()})
