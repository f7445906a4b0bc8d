"""Trace operators, and compile every kernel for cards that are not here: what the interpreter takes may not compile."""

from __future__ import annotations

import re
import sys
from typing import Any

import torch
import triton
from torch._dynamo.source import ConstantSource
from torch._functorch.aot_autograd import aot_export_module
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from qcompile.backends.triton import operators
from qcompile.backends.triton.kernels import (
    gated,
    group_dequantize,
    group_gemm,
    group_gemv,
    grouped,
    int8_gemm,
    partial_sums,
    row_kernel,
    scaled_gemm,
    tokens,
)
from qcompile.backends.triton.kernels.group_weight import GroupWeight
from qcompile.backends.triton.kernels.packing import plane_of, rows_of_words
from qcompile.backends.triton.kernels.tuning import Tile

POINTERS = {
    "x_ptr": "*fp16", "y_ptr": "*fp16", "bias_ptr": "*fp16", "words_ptr": "*i32", "table_ptr": "*fp32",
    "scale_ptr": "*fp32", "zero_ptr": "*u8", "index_ptr": "*u8", "level_ptr": "*fp32", "offset_ptr": "*fp32",
    "q_ptr": "*i8", "weight_ptr": "*i8", "weight_scale_ptr": "*fp32", "outlier_ptr": "*i32",
    "outlier_weight_ptr": "*fp16", "inlier_ptr": "*i1", "partial_ptr": "*fp32", "epsilon": "fp32",
    "other_ptr": "*fp16", "sum_ptr": "*fp16", "gate_ptr": "*fp16",
}  # fmt: skip
SHARED_MEMORY = {80: 163 << 10, 90: 227 << 10}
"""Of a program, by compute capability: table of the CUDA C++ programming guide, "technical specifications"."""

DOUBLE = ("index_ptr", "level_ptr", "offset_ptr")
SYMMETRIC = ("table_ptr", "zero_ptr", *DOUBLE)


def compile_for(
    card: int, kernel: Any, absent: tuple[str, ...], given: dict[str, Any], types: dict[str, str], **options: int
) -> str:
    """Compile a kernel; `absent` arguments are None, `given` those it is compiled for, all others are of the launch.

    Returns Triton's own code for the card.
    """
    constants = {**dict.fromkeys(absent), "input_stride": 1, **given}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {
        name: "constexpr" if name in constants else types.get(name, POINTERS.get(name, "i32"))
        for name in kernel.arg_names
    }
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    aligned = [
        name
        for name, kind in signature.items()
        if kind[0] == "*" or name in ("outputs", "row_stride", "other_row_stride")
    ]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, signature, places, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", card, 32), options=options)
    assert compiled.asm["cubin"], kernel
    assert compiled.metadata.shared <= SHARED_MEMORY[card], f"{kernel}: {compiled.metadata.shared} bytes"
    return str(compiled.asm["ttgir"])


def compile_gemm(card: int, absent: tuple[str, ...], constants: dict[str, Any], tile: Tile) -> None:
    """Compile a product on tensor cores: integers come out of their words in the threads that multiply them.

    Not where they are looked up, and not where a plane has several scales, which are spread over threads first.
    """
    given = constants | {"COLUMNS": tile.columns, "TOKENS": tile.rows, "SPLIT": tile.split}
    options = {"num_warps": tile.warps, "num_stages": group_gemm.stages(tile, constants)}
    code = compile_for(card, group_gemm._gemm, absent, given, {}, **options)
    values = f"tensor<{tile.columns}x{constants['PLANE']}x"
    moved = re.findall(rf"ttg\.(?:convert_layout|local_alloc|local_store) %.*{values}", code)
    assert bool(moved) == ("table_ptr" not in absent or not constants["ALIGNED"]), f"{tile} for {card}: {moved}"


def group_constants(inputs: int, bits: int, group_size: int, zero: bool) -> dict[str, Any]:
    """Return what kernels of a weight in groups are compiled for."""
    plane = plane_of(inputs, bits)
    words = torch.empty(rows_of_words(inputs, bits, plane), 64, dtype=torch.int32)
    groups = -(-inputs // group_size)
    zero_point = torch.empty(groups, 64, dtype=torch.uint8) if zero else None
    return GroupWeight(words, torch.empty(groups, 64), bits, group_size, plane, inputs, zero_point).constants()


def compile_kernels(card: int) -> None:
    """Compile for one card, each kernel in the forms that differ in what they read."""
    forms: list[tuple[tuple[str, ...], dict[str, Any]]] = [
        (SYMMETRIC, group_constants(4096, 4, 64, zero=False)),
        (("table_ptr", *DOUBLE), group_constants(4096, 3, 40, zero=True)),
        (("table_ptr", *DOUBLE), group_constants(4096, 8, 64, zero=True)),
        (("zero_ptr", "bias_ptr"), {**group_constants(4096, 4, 64, zero=False), "ZERO": 0}),
    ]
    # The oldest card that is meant has the instructions of all others: it is asked for integers alone.
    for absent, constants in forms if card >= 89 else forms[:3]:
        vector = {"M": 2, "COLUMNS": 32, "ROWS": 16, "SPLIT": 2}
        compile_for(card, group_gemv._gemv, absent, constants | vector, {})
        compile_gemm(card, absent, constants, group_gemm.FEW[0])
        compile_for(card, group_dequantize._dequantize, absent, constants | {"COLUMNS": 128}, {})
    for tile in (group_gemm.SOME[0], group_gemm.MANY[0]):
        compile_gemm(card, SYMMETRIC, group_constants(4096, 2, 64, zero=False), tile)
    compile_for(card, partial_sums._add, (), {"SPLIT": 4, "BLOCK": 256}, {})
    products = {"INPUTS": 4096, "BY_TOKEN": True, "PANEL": 8, "OUTLIERS": 32}
    tile = scaled_gemm.SOME[0]
    sizes = {"ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth, "ACTIVATION": "gelu", "STEPS": 1}
    compile_for(card, scaled_gemm._gemm, (), products | sizes, {}, num_warps=4, num_stages=tile.stages)
    if card >= 89:
        types = {"q_ptr": "*fp8e4nv", "weight_ptr": "*fp8e4nv"}
        absent = ("x_ptr", "outlier_ptr", "outlier_weight_ptr")
        sizes |= {"INPUTS": 100, "STEPS": 0}
        compile_for(card, scaled_gemm._gemm, absent, products | sizes, types, num_warps=4, num_stages=tile.stages)
    compile_rows(card)
    flat = {"INPUTS": 4000, "BLOCK": 1024, "gate_input_stride": 1}
    compile_for(card, tokens._quantize_static, (), flat, {})
    compile_for(card, gated._gated, (), flat | {"ACTIVATION": "silu"}, {})


def compile_rows(card: int) -> None:
    """Compile the kernel of whole rows for one card: of integers, of floats of 16 and of 8 bits."""
    rows = {"INPUTS": 4000, "BLOCK": 4096, "LIMIT": 127.0, "other_input_stride": 1, "ACTIVATION": "none"}
    types = {"weight_ptr": "*fp16", "y_ptr": "*i8"}
    plain = ("weight_ptr", "bias_ptr", "inlier_ptr", "sum_ptr")
    compile_for(card, row_kernel._row, (), rows | {"NORM": "layer"}, types, num_warps=4)
    gate = rows | {"NORM": "none", "ACTIVATION": "gelu"}
    compile_for(card, row_kernel._row, plain, gate, types, num_warps=4)
    if card >= 89:
        floats = {"weight_ptr": "*fp32", "y_ptr": "*bf16", "sum_ptr": "*bf16"}
        absent = ("bias_ptr", "inlier_ptr", "scale_ptr")
        compile_for(card, row_kernel._row, absent, rows | {"NORM": "rms"}, floats, num_warps=4)
        absent, types = (*plain, "other_ptr"), {"y_ptr": "*fp8e4nv"}
        compile_for(card, row_kernel._row, absent, rows | {"NORM": "none"}, types, num_warps=4)


class Driver:
    """As much of a driver as torch asks for while it traces."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0


class Linears(torch.nn.Module):
    """One product of each kind."""

    def forward(self, x: torch.Tensor, words: torch.Tensor, scale: torch.Tensor, *int8: torch.Tensor) -> Any:
        y = grouped.grouped_gemm(x, words, scale, None, None, 4, 64, 16)
        z = int8_gemm.int8_linear(y, *int8, None, "relu")
        return (grouped.grouped_gemv(z, words, scale, None, None, 4, 64, 16),)


def seen_through() -> list[list[str]]:
    """Return, of each kernel that torch's ahead-of-time tracing finds in `Linears`, the arguments that it writes."""
    triton.runtime.driver.set_active(Driver())
    with FakeTensorMode():
        x = torch.empty(3, 256, device="cuda")
        words = torch.empty(32, 256, dtype=torch.int32, device="cuda")
        scale = torch.empty(4, 256, device="cuda")
        int8 = torch.empty(256, 256, dtype=torch.int8, device="cuda"), torch.empty(256, device="cuda")
        module, _ = aot_export_module(Linears(), [x, words, scale, *int8], trace_joint=False)
    return [node.kwargs["tensors_to_clone"] for node in module.graph.nodes if "tensors_to_clone" in node.kwargs]


class Operators(torch.nn.Module):
    """One node of each kind, as models are lowered to."""

    def forward(self, x: torch.Tensor, words: torch.Tensor, scale: torch.Tensor, *others: torch.Tensor) -> Any:
        codebook, indices, int8, of_outputs, outliers, columns = others
        y = operators.grouped_linear(x, words, scale, bits=4, group_size=64, plane=16)
        y = y + operators.codebook_linear(x, words, codebook, scale, group_size=64, plane=16)
        q, of_tokens = operators.quantize_tokens(y, indices)
        z = operators.integer_linear(q, of_tokens, None, int8, of_outputs, of_outputs)
        z = z + operators.outlier_linear(q, of_tokens, int8, of_outputs, y, outliers, columns)
        gated, _ = operators.gated_quantize(z, y, activation="silu")
        norm, total = operators.add_layer_norm(operators.gated(z, y, activation="gelu"), z, of_outputs, epsilon=1e-5)
        last, _, _ = operators.rms_norm_quantize(norm, total, of_outputs, epsilon=1e-5)
        return gated, last


def asked_of_sizes() -> list[str]:
    """Return what torch's tracing of `Operators` asks of how many rows there are: what it made would hold for no other.

    Raises AssertionError where a kernel is launched for the number of the trace.
    """
    triton.runtime.driver.set_active(Driver())
    sizes = ShapeEnv()
    symbol = sizes.create_symbol(3, source=ConstantSource("rows"), dynamic_dim=DimDynamic.DYNAMIC)
    with FakeTensorMode(shape_env=sizes):

        def empty(*shape: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(*shape, dtype=dtype, device="cuda")

        weight = empty(32, 256, dtype=torch.int32), empty(4, 256), empty(16), empty(256, dtype=torch.bool)
        int8 = empty(256, 256, dtype=torch.int8), empty(256), empty(5, dtype=torch.int32), empty(256, 5)
        x = empty(sizes.create_symintnode(symbol, hint=3), 256)
        module, _ = aot_export_module(Operators(), [x, *weight, *int8], trace_joint=False)
    grids = [node.kwargs["grid"] for node in module.graph.nodes if "grid" in node.kwargs]
    assert len(grids) >= 9, grids
    for grid in grids:
        assert any(isinstance(size, torch.fx.Node) for sizes in grid for size in sizes), grid
    return [str(guard.expr) for guard in sizes.guards]


if __name__ == "__main__":
    torch.cuda.get_device_name = lambda _: "none"
    found = seen_through()
    assert found == [["y_ptr"], ["y_ptr"], ["y_ptr", "scale_ptr"], ["y_ptr"], ["y_ptr"]], found
    asked = asked_of_sizes()
    assert not asked, asked
    for card in map(int, sys.argv[1:]):
        compile_kernels(card)
