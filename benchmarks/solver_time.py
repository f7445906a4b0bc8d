"""Seconds that a weight-only solver takes for 100 M parameters on 2 cores: packages and qcompile.

The weights are the linears of SmolLM2's first four blocks, 14 M, in 4 bits and groups of 64. rtn and hqq read no data:
weights in, integers and scales out. gptq and awq include what calibrates them, on the same 32 sequences of 512 tokens:
a peer's whole call, and the passes of qcompile without verification, which peers do not have. Every peer has a process
of its own; one after another, once: a run takes minutes, and the goals are factors.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from benchmarks import decoder
from benchmarks.peer_process import run_module
from benchmarks.results import Benchmark, Goal, Row
from benchmarks.weight_only_loss import CALIBRATION, FIRST_OF_CALIBRATION, GROUP_SIZE, WINDOW
from qcompile.recipe import Recipe
from qcompile.scheme import GroupScheme
from qcompile.solvers.hqq import hqq
from qcompile.solvers.rtn import rtn

BITS, BLOCKS = 4, 4
# What it is compared with -> environment, module of benchmarks.peers_llm, method.
PEERS = {
    "hqq": ("hqq", "quantize_hqq", "hqq"),
    "neural-compressor gptq": ("inc", "quantize_inc", "gptq"),
    "GPTQModel gptq": ("gptqmodel", "quantize_gptqmodel", "gptq"),
    "NNCF awq": ("openvino", "quantize_nncf", "nncf-awq"),
}
PASSES = ("search_scales", "fold_scales", "quantize_weights")


def run(folder: Path) -> Benchmark:
    """Time the solvers without data on arrays, the others as a whole."""
    source = decoder.float_folder(folder / "float", BLOCKS)
    calibration = decoder.windows(decoder.prose(source), WINDOW, CALIBRATION, FIRST_OF_CALIBRATION)
    weights = _weights(source)
    scale = 1e8 / sum(weight.size for weight in weights)
    seconds = {
        "qcompile rtn": _timed(rtn, weights) * scale,
        "qcompile hqq": _timed(hqq, weights) * scale,
        "qcompile gptq": _pass_seconds("w4a16-gptq", source, calibration, folder) * scale,
        "qcompile awq": _pass_seconds("w4a16-awq", source, calibration, folder) * scale,
    }
    given = json.dumps({"bits": BITS, "group_size": GROUP_SIZE, "calibration": calibration})
    for name, (environment, module, method) in PEERS.items():
        task = json.dumps({**json.loads(given), "passages": []}) if module == "quantize_nncf" else given
        target = folder / name
        arguments = (method, str(source), str(target))
        said = json.loads(run_module(environment, module, *arguments, log=target.with_suffix(".log"), given=task))
        seconds[name] = said["seconds"] * scale
    return benchmark(seconds)


def benchmark(seconds: dict[str, float]) -> Benchmark:
    """The table and the goals, of seconds per 100 M parameters."""
    rows: list[Row] = [{"solver": name, "s per 100 M": value} for name, value in seconds.items()]
    return Benchmark(f"Weight-only solvers, {BITS} bits, groups of {GROUP_SIZE}, 2 cores", rows, _goals(seconds))


def _weights(source: Path) -> list[np.ndarray]:
    """The blocks' linears, float32 [inputs, outputs], as the graph has them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    return [
        np.ascontiguousarray(parameter.detach().numpy().T)
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and "embed" not in name
    ]


def _timed(solve: Any, weights: list[np.ndarray]) -> float:
    scheme = GroupScheme(BITS, GROUP_SIZE, True)
    solve(weights[0], scheme)
    start = time.perf_counter()
    for weight in weights:
        solve(weight, scheme)
    return time.perf_counter() - start


def _pass_seconds(name: str, source: Path, calibration: list[list[int]], folder: Path) -> float:
    """What the passes that scale and quantize took inside `qcompile.compile`, their calibration included.

    lm_head's rounding is in it too; the check of what the passes promise is not: no peer has one.
    """
    recipe = Recipe.from_name(name, bits=BITS, group_size=GROUP_SIZE, sym=True)
    artifact = decoder.compiled(source, recipe, calibration, folder / name, verify=False)
    return sum(item.seconds for item in artifact.report.passes if any(each in item.title for each in PASSES))


def _goals(seconds: dict[str, float]) -> list[Goal]:
    gptq = min(seconds["neural-compressor gptq"], seconds["GPTQModel gptq"])
    return [
        Goal("rtn, s per 100 M", seconds["qcompile rtn"], 0.5, at_most=True),
        Goal("hqq, s per 100 M", seconds["qcompile hqq"], 3.0, at_most=True),
        Goal("hqq, times as fast as the hqq package", seconds["hqq"] / seconds["qcompile hqq"], 3.0),
        Goal("gptq, times as fast as the faster peer", gptq / seconds["qcompile gptq"], 2.0),
        Goal("awq, times as fast as NNCF", seconds["NNCF awq"] / seconds["qcompile awq"], 3.0),
    ]
