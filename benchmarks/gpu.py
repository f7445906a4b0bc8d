"""Time the Triton kernels on one CUDA card, beside torch's float16: `python -m benchmarks.gpu`, in under 8 minutes.

Needs torch, Triton and this repository, and nothing installed of qcompile's other dependencies. First measures how fast
memory is copied and float16 matrices are multiplied, and gives every result as a share of that. Each kernel is checked
against float64 on the operands that are timed; those between products are timed beside several of torch's. Without a
card, `--interpret` checks the kernels at toy shapes in Triton's interpreter, and times nothing; without either, it says
so and ends with 3.

A time is the median of 20 replays of a CUDA graph, which takes turns with those that it is compared with; a graph
multiplies by several weights after each other, more than the card's cache holds.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from benchmarks.gpu_kernels import (
    Fused,
    Product,
    eight_bits,
    error,
    fused_error,
    gate,
    grouped,
    nf4,
    residual_norm,
)

SHAPES = ((8192, 8192), (4096, 14336))
TOY = (270, 33)
CACHE_BYTES = 256 << 20
BUDGET_S = 420


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table; `ratio` is float16's time over this one, `goals` what it and the share are to reach."""

    name: str
    shape: str
    rows: int
    ms: float
    share: float
    of: str
    ratio: float
    goals: str
    holds: bool | None


def race(rivals: dict[str, Sequence[Callable[[], object]]], turns: int = 20) -> dict[str, float]:
    """Return the milliseconds of one call of each rival, which is calls on several weights."""
    graphs = {}
    for name, calls in rivals.items():
        for call in calls:
            call()  # compiles, and chooses a tile
        torch.cuda.synchronize()
        graphs[name] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[name]):
            for call in calls:
                call()
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(turns + 3):
        for name, graph in graphs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            if turn >= 3:
                times[name].append(start.elapsed_time(end) / len(rivals[name]))
    return {name: statistics.median(each) for name, each in times.items()}


def measure_card() -> tuple[float, float]:
    """Return bytes in a second of a copy of 1 GiB, read and written, and operations of float16 matrices of 8192."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target, a, b = torch.empty_like(source), *torch.randn(2, 8192, 8192, device="cuda").half()
    found = race({"copy": [lambda: target.copy_(source)], "product": [lambda: a @ b]})
    return 2 * source.numel() / found["copy"] * 1e3, 2 * 8192**3 / found["product"] * 1e3


@dataclasses.dataclass(frozen=True)
class Case:
    """What is timed at a shape, and the goals of issue 5: of the share, and of the ratio to float16."""

    make: partial[Product]
    rows: int
    share: float = 0.0
    ratio: float = 0.0
    rate: float = 0.0


# `rate`: operations of 8 bits for one of float16; 0: what counts is bandwidth.
CASES = (
    Case(partial(grouped, "gemv", 4), 1, share=0.75, ratio=3.0),
    Case(partial(grouped, "gemm", 4), 16, ratio=2.6),
    *(Case(partial(grouped, path, 4), m, ratio=0.85, rate=1) for m in (256, 2048) for path in ("gemm", "dequantize")),
    *(Case(partial(eight_bits, n), m, 0.65, 1.5, rate=2) for m in (2048, 4096) for n in ("w8a8", "llm_int8")),
    Case(partial(nf4, False), 1, ratio=2.5),
    Case(partial(nf4, True), 1),
    *(Case(partial(grouped, path, 4), rows) for rows in (4, 8) for path in ("gemv", "gemm")),
    *(Case(partial(grouped, "gemv", bits), 1) for bits in (2, 3, 8)),
    Case(partial(grouped, "gemm", 4), 64),
)
FP8 = Case(partial(eight_bits, "fp8"), 2048, rate=2)
FUSED = (
    *(partial(residual_norm, quantizes, count, 8192) for quantizes in (False, True) for count in (16, 4096)),
    *(partial(gate, quantizes, count, 14336) for quantizes in (False, True) for count in (16, 4096)),
)


def timed(case: Case, inputs: int, outputs: int, card: tuple[float, float]) -> Row:
    """Check a kernel, and time it beside float16."""
    torch.manual_seed(inputs + case.rows)
    x = torch.randn(case.rows, inputs, device="cuda").half()
    first = case.make(inputs, outputs, "cuda")
    off = error(first, x)
    assert off < 1, f"{first.name} at {inputs} x {outputs}, {case.rows} rows: {off:.2f} of what rounding may do"
    weights = [first, *(case.make(inputs, outputs, "cuda") for _ in range(CACHE_BYTES // first.size))]
    count = CACHE_BYTES // (2 * inputs * outputs) + 1
    floats = [torch.randn(outputs, inputs, device="cuda").half() for _ in range(count)]
    plain = [partial(torch.nn.functional.linear, x, each) for each in floats]
    found = race({"kernel": [partial(each.call, x) for each in weights], "float": plain})
    seconds, ratio = found["kernel"] / 1e3, found["float"] / found["kernel"]
    moved = first.size + 2 * case.rows * (inputs + outputs)
    of_bandwidth, of_rate = moved / seconds / card[0], 2 * case.rows * inputs * outputs / seconds / card[1]
    share = of_rate / case.rate if case.rate else of_bandwidth
    goals = " and ".join([f"{case.share:.0%}"] * bool(case.share) + [f"{case.ratio}x"] * bool(case.ratio))
    holds = (share >= case.share and ratio >= case.ratio) if goals else None
    of = {0: "bandwidth", 1: "fp16 rate", 2: "2 x fp16 rate"}[int(case.rate)]
    return Row(first.name, f"{inputs}x{outputs}", case.rows, found["kernel"], share, of, ratio, goals, holds)


def timed_fused(make: Callable[[str], Fused], card: tuple[float, float]) -> Row:
    """Check a kernel of operators between products, and time it beside torch's."""
    torch.manual_seed(0)
    first = make("cuda")
    off = fused_error(first)
    assert off < 1, f"{first.name}: {off:.2f} of what rounding may do"
    several = [first, *(make("cuda") for _ in range(CACHE_BYTES // first.size))]
    found = race({"kernel": [each.call for each in several], "float": [each.apart for each in several]})
    count, width = first.exact().shape
    share = first.size / (found["kernel"] / 1e3) / card[0]
    ratio = found["float"] / found["kernel"]
    return Row(first.name, str(width), count, found["kernel"], share, "bandwidth", ratio, "", None)


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    print(f"{'kernel':17}{'inputs x outputs':18}{'rows':>5}{'us':>9}{'share':>7} of {'':13}{'x fp16':>7}  goal")
    for row in rows:
        print(f"{row.name:17}{row.shape:18}{row.rows:5}{row.ms * 1e3:9.1f}{row.share:7.0%} of {row.of:13}", end="")
        print(f"{row.ratio:7.2f}  {row.goals}{'' if row.holds in (None, True) else ': not reached'}")


def missed(rows: Sequence[Row]) -> list[str]:
    """Return the goals that no way of computing a product reaches, and where llm_int8 takes 15% longer than w8a8."""
    held: dict[str, bool] = {}
    times = {(row.name, row.shape, row.rows): row.ms for row in rows}
    for row in rows:
        place = f"at {row.shape}, {row.rows} rows"
        if row.holds is not None:
            goal = f"{row.name.split()[0]} {place}: {row.goals}"
            held[goal] = held.get(goal, False) or row.holds
        if row.name == "llm_int8" and (plain := times.get(("w8a8", row.shape, row.rows))):
            held[f"llm_int8 {place}: {row.ms / plain:.3f} of w8a8, goal 1.15"] = row.ms <= 1.15 * plain
    return [goal for goal, holds in held.items() if not holds]


def interpret() -> None:
    """Check every kernel at toy shapes in the interpreter."""
    for case in {(case.make.func, case.make.args): case for case in (*CASES, FP8)}.values():
        torch.manual_seed(0)
        product, count = case.make(*TOY, "cpu"), min(case.rows, 5)
        off = error(product, torch.randn(count, TOY[0]).half())
        print(f"{product.name:17}{TOY[0]}x{TOY[1]}, {count} rows: {off:.3f} of what rounding may do")
        assert off < 1, product.name
    for function, quantizes in dict.fromkeys((each.func, each.args[0]) for each in FUSED):
        torch.manual_seed(0)
        fused = function(quantizes, 5, TOY[0], "cpu")
        off = fused_error(fused)
        print(f"{fused.name:17}{TOY[0]}, 5 rows: {off:.3f} of what rounding may do")
        assert off < 1, fused.name


def main(arguments: Sequence[str]) -> int:
    """Return 0 where all goals hold, 1 where one falls short or was not reached in time, 3 where there is no card."""
    if "--interpret" in arguments:
        os.environ["TRITON_INTERPRET"] = "1"
        interpret()
        return 0
    if not torch.cuda.is_available():
        print("no CUDA card here: nothing was timed; --interpret checks the kernels without one")
        return 3
    start, card, rows = time.monotonic(), measure_card(), []
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Triton {__import__('triton').__version__}")
    print(f"copies {card[0] / 1e9:.0f} GB/s, read and written; float16 8192^3 {card[1] / 1e12:.0f} TFLOP/s\n")
    cases = CASES if torch.cuda.get_device_capability() < (8, 9) else (*CASES, FP8)
    runs: list[Callable[[], Row]] = [partial(timed, case, *shape, card) for case in cases for shape in SHAPES]
    runs += [partial(timed_fused, make, card) for make in FUSED]
    for run in runs:
        if time.monotonic() - start < BUDGET_S:
            rows.append(run())
            print(f"{time.monotonic() - start:4.0f} s {rows[-1]}", file=sys.stderr, flush=True)
            torch.cuda.empty_cache()
    show(rows)
    print(f"{len(rows)} of {len(runs)} in {time.monotonic() - start:.0f} s", *missed(rows), sep="\nnot reached: ")
    return int(len(rows) < len(runs) or bool(missed(rows)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
