"""Linears with weights in blocks, in the form that recipes and files give them: what both backends have to keep."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from qcompile.block_functions import round_in_blocks
from tests.backends.portable import parse

OUTPUTS = 24
GROUPS = (32, 64, 128, -1, 48)
SIZES = (
    (32, 1),
    (64, 17),
    (32, 33),
    (48, 33),
    (-1, 33),
    (48, 64),
    (-1, 64),
    (48, 288),
    (64, 288),
    (128, 288),
    (-1, 288),
)
"""Pairs of a group and a width: groups that are filled or not, that divide the width or not, and one for all."""

SCHEMES = tuple(itertools.product((2, 3, 4, 8), (True, False)))


@dataclasses.dataclass(frozen=True)
class BlockCase:
    """A linear y = x @ weight whose weight is in blocks.

    Attributes:
        model: portable.
        integers: integers less their zero points, float32 [inputs, outputs].
        scale: the same of each, float32 [inputs, outputs].
    """

    model: ir.Model
    integers: np.ndarray
    scale: np.ndarray

    @property
    def weight(self) -> np.ndarray:
        """What the weight stands for, in float32."""
        product: np.ndarray = self.integers * self.scale
        return product


def block_case(
    bits: int, sym: bool, group: int, inputs: int, outputs: int = OUTPUTS, *, rounded: int | None = None
) -> BlockCase:
    """Draw a linear: the whole range of the integers, scales of both signs.

    `rounded` is the block of the activation that shares a scale of 8 bits; None: it stays float.
    """
    rng = np.random.default_rng(bits * 1000 + inputs + group)
    size = inputs if group == -1 else group
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if sym else (0, 2**bits)
    dtype: Any = np.dtype(
        {4: {True: ml_dtypes.int4, False: ml_dtypes.uint4}, 8: {True: np.int8, False: np.uint8}}[4 if bits < 5 else 8][
            sym
        ]
    )
    integers = rng.integers(low, high, (inputs, outputs))
    integers.flat[:2] = low, high - 1
    blocks = -(-inputs // size)
    scale = (rng.uniform(0.5, 2, (blocks, outputs)) * rng.choice([-1, 1], (blocks, outputs))).astype(np.float32)
    zero = np.zeros((blocks, outputs), np.int64) if sym else rng.integers(low, high, (blocks, outputs))

    def of_each(array: np.ndarray) -> np.ndarray:
        return np.repeat(array, size, axis=0)[:inputs]

    whole = group == -1
    how = "axis = 1" if whole else f"axis = 0, block_size = {group}"
    model = parse(
        f"(float[N,{inputs}] x) => (float[N,{outputs}] y)"
        f" {{ d = DequantizeLinear <{how}> (w, s, z) y = MatMul (x, d) }}",
        w=integers.astype(dtype),
        s=scale[0] if whole else scale,
        z=(zero[0] if whole else zero).astype(dtype),
    )
    if rounded is not None:
        product = model.graph[1]
        product.replace_input_with(0, round_in_blocks(model, model.graph.inputs[0], rounded, product))
    common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    return BlockCase(model, (integers - of_each(zero)).astype(np.float32), of_each(scale))


def run(backend: Any, case: BlockCase, folder: Path, x: np.ndarray) -> np.ndarray:
    """Lower, and run the artifact."""
    lowered = backend.lower(case.model, folder, target=None)
    found: np.ndarray = backend.open_artifact(folder / lowered.model_file, threads=1).run({"x": x})["y"]
    return found


def check_weights(backend: Any, case: BlockCase, folder: Path) -> None:
    """Assert that the artifact and the session multiply by the weight, to the last bit; few rows have own kernels."""
    lowered = backend.lower(case.model, folder, target=None)
    artifact = backend.open_artifact(folder / lowered.model_file, threads=1)
    identity = np.eye(len(case.weight), dtype=np.float32)
    for session in (artifact, backend.open_session(case.model, threads=1)):
        for rows in (slice(0, 1), slice(1, 4), slice(4, None)):
            if len(identity[rows]):
                np.testing.assert_array_equal(session.run({"x": identity[rows]})["y"], case.weight[rows])
