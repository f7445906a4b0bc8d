"""Kernels of the backend for GPUs at any shape, with random operands, and what float64 makes of the same operands."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
GROUP = 64


def kernels(name: str) -> Any:
    """Return a module of the kernels without running the __init__ of the packages around it, which import onnx_ir."""
    folders = {"qcompile": "qcompile", "qcompile.backends": "backends", "qcompile.backends.triton": "backends/triton"}
    for package, folder in folders.items():
        module = sys.modules.setdefault(package, types.ModuleType(package))
        if not hasattr(module, "__path__"):
            module.__path__ = [str(ROOT / folder)]
    return __import__(f"qcompile.backends.triton.kernels.{name}", fromlist=[name])


def _spread(scale: torch.Tensor, inputs: int) -> torch.Tensor:
    return scale.double().repeat_interleave(GROUP, dim=0)[:inputs]


@dataclasses.dataclass(frozen=True)
class Product:
    """A kernel and its weight: `exact` makes what that stands for, float64 [K, N], and `size` are its bytes.

    `quantizes`: to how many steps of either side x is rounded; 0: it is not.
    """

    name: str
    call: Callable[[torch.Tensor], torch.Tensor]
    exact: Callable[[], torch.Tensor]
    size: int
    quantizes: int = 0


def grouped(path: str, bits: int, inputs: int, outputs: int, device: str) -> Product:
    """Return integers in groups of 64, by "gemv", "gemm" or "dequantize", which is two kernels."""
    operators, packing = kernels("grouped"), kernels("packing")
    half = 1 << (bits - 1)
    signed = torch.randint(-half, half, (inputs, outputs), dtype=torch.int8, device=device)
    scale = (torch.rand(-(-inputs // GROUP), outputs, device=device) / (1 << bits)).half()
    packed = packing.pack(signed, bits)
    numbers = (bits, GROUP, packed.plane)

    def two(x: torch.Tensor) -> torch.Tensor:
        weight = operators.grouped_dequantize(packed.words, scale, None, *numbers, inputs, x.dtype)
        return x @ weight

    one = {"gemv": operators.grouped_gemv, "gemm": operators.grouped_gemm}
    call = two if path == "dequantize" else lambda x: one[path](x, packed.words, scale, None, None, *numbers)
    exact, size = lambda: signed.double() * _spread(scale, inputs), packed.words.numel() * 4 + scale.numel() * 2
    return Product(f"w{bits}a16 {path}", call, exact, size)


def nf4(double: bool, inputs: int, outputs: int, device: str) -> Product:
    """Return indices of a codebook in groups of 64, with scales in float16 or in 8 bits."""
    operators, packing = kernels("nf4"), kernels("packing")
    indices = torch.randint(0, 16, (inputs, outputs), dtype=torch.uint8, device=device)
    packed = packing.pack(indices, 4)
    codebook, groups = torch.linspace(-1, 1, 16, device=device), -(-inputs // GROUP)
    scale = (torch.rand(groups, outputs, device=device) / 8).half()
    tail = (None, GROUP, packed.plane)
    if not double:
        call = lambda x: operators.nf4_gemv(x, packed.words, codebook, scale, None, None, None, *tail)  # noqa: E731
        size = packed.words.numel() * 4 + scale.numel() * 2
        return Product("nf4 gemv", call, lambda: codebook[indices.int()].double() * _spread(scale, inputs), size)
    levels, steps = torch.linspace(-1, 1, 256, device=device), torch.rand(-(-groups * outputs // 256), device=device)
    of_scale = torch.randint(0, 256, (groups, outputs), dtype=torch.uint8, device=device)
    offset = torch.tensor(0.1, device=device)

    def exact() -> torch.Tensor:
        blocks = steps.repeat_interleave(256)[: groups * outputs].reshape(outputs, groups).T
        return codebook[indices.int()].double() * _spread(levels[of_scale.int()] * blocks + offset, inputs)

    size = packed.words.numel() * 4 + of_scale.numel()
    call = lambda x: operators.nf4_gemv(x, packed.words, codebook, steps, of_scale, levels, offset, *tail)  # noqa: E731
    return Product("nf4 double gemv", call, exact, size)


def eight_bits(name: str, inputs: int, outputs: int, device: str) -> Product:
    """Return "w8a8", "llm_int8" with 0.5% of the inputs as outliers, or "fp8": the quantization of x is timed too."""
    scale = torch.rand(outputs, device=device) / 128
    weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8, device=device)
    if name == "fp8":
        floats = torch.randn(outputs, inputs, device=device).to(torch.float8_e4m3fn)
        fp8 = kernels("fp8").fp8_linear
        exact = lambda: (floats.double() * scale.double()[:, None]).T  # noqa: E731
        return Product(name, lambda x: fp8(x, floats, scale, None), exact, floats.numel(), 16)
    if name == "w8a8":
        int8 = kernels("int8_gemm").int8_linear
        exact = lambda: (weight.double() * scale.double()[:, None]).T  # noqa: E731
        return Product(name, lambda x: int8(x, weight, scale, None, "none"), exact, weight.numel(), 127)
    columns = torch.arange(0, inputs, 200, device=device)
    inliers = torch.ones(inputs, dtype=torch.bool, device=device).index_fill_(0, columns, False)
    weight.mul_(inliers)
    apart = torch.randn(outputs, len(columns), device=device).half()
    llm, places = kernels("llm_int8").llm_int8_linear, columns.int()

    def whole() -> torch.Tensor:
        return (weight.double() * scale.double()[:, None]).index_add(1, columns, apart.double()).T

    return Product(name, lambda x: llm(x, weight, scale, inliers, places, apart, None), whole, weight.numel(), 127)


@dataclasses.dataclass(frozen=True)
class Fused:
    """Operators between products in one kernel: `apart` as torch runs them, `exact` in float64, `size` bytes moved.

    `call` returns y, or integers and their scales first.
    """

    name: str
    call: Callable[[], Sequence[torch.Tensor]]
    apart: Callable[[], object]
    exact: Callable[[], torch.Tensor]
    size: int


def residual_norm(quantizes: bool, count: int, width: int, device: str) -> Fused:
    """Return RMSNormalization of the sum with a residual; torch's without the quantization."""
    x, residual, weight = (torch.randn(*shape, device=device).half() for shape in ((count, width),) * 2 + ((width,),))
    norms, norm, size = kernels("norms"), torch.nn.functional.rms_norm, 2 * 3 * x.numel()

    def exact() -> torch.Tensor:
        return norm((x + residual).double(), (width,), weight.double(), 1e-5)

    def apart() -> tuple[torch.Tensor, torch.Tensor]:
        return norm(total := x + residual, (width,), weight, 1e-5), total

    if quantizes:
        call = lambda: norms.rms_norm_quantize(x, residual, weight, None, 1e-5)  # noqa: E731
        return Fused("norm add int8", call, apart, exact, size + x.numel())
    call = lambda: norms.add_rms_norm(x, residual, weight, 1e-5)  # noqa: E731
    return Fused("norm add", call, apart, exact, size + 2 * x.numel())


def gate(quantizes: bool, count: int, width: int, device: str) -> Fused:
    """Return silu(gate) * up, views of one product; torch's without the quantization."""
    gate, up = torch.randn(count, 2 * width, device=device).half().split(width, dim=1)
    gated, silu = kernels("gated"), torch.nn.functional.silu
    apart = lambda: silu(gate) * up  # noqa: E731
    exact = lambda: silu(gate.double()) * up.double()  # noqa: E731
    if quantizes:
        call = lambda: gated.gated_quantize(gate, up, "silu")  # noqa: E731
        return Fused("gate silu int8", call, apart, exact, 5 * up.numel())
    return Fused("gate silu", lambda: (gated.gated(gate, up, "silu"),), apart, exact, 6 * up.numel())


def fused_error(fused: Fused) -> float:
    """Return how far y is from float64, as a share of what rounding it, or each to a step of its row, may do."""
    y, *others = fused.call()
    exact, values = fused.exact(), y.double()
    noise = 2.0**-10 * exact.abs() + 2.0**-24
    if y.dtype == torch.int8:
        values = values * others[0].double()[:, None]
        noise = noise + others[0].double()[:, None] / 2
    return float((values - exact).norm() / noise.norm())


def error(product: Product, x: torch.Tensor) -> float:
    """Return how far y is from float64, as a share of what rounding x to its steps, and all to float16, may do."""
    exact = product.exact()
    y, expected = product.call(x).double(), x.double() @ exact
    # Of the norm of the products, rounding weights and sums to float16, or x to steps of its largest of a row.
    noise = 2.0**-10 * (x.double().square() @ exact.square()).sqrt() + 2.0**-11 * expected.abs()
    if product.quantizes:
        step = x.double().abs().amax(1, keepdim=True) / product.quantizes
        noise = noise + step * exact.square().sum(0).sqrt()
    return float((y - expected).norm() / noise.norm())
