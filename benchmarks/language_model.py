"""SmolLM2-135M-Instruct: 990 tokens of prompt, 64 of answer, greedy, 2 threads: three peers and qcompile.

Every model is loaded in its own process; the processes take turns, one answer each, and wait otherwise. Every round
asks about another part of the prose, the same for all, so that no one can keep the cache of a prompt. The loss is each
runtime's own, activations as it computes with them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import qcompile
from benchmarks import decoder
from benchmarks.peer_process import OWN, PeerProcess, Runner, run_module
from benchmarks.results import Benchmark, Goal, Row
from qcompile.evaluation import open_decoder
from qcompile.evaluation_scores import negative_log_likelihood
from qcompile.recipe import Recipe
from qcompile.scheme import GroupScheme

THREADS, PROMPT, ANSWER, ROUNDS = 2, 990, 64, 5
LOSS_WINDOWS, WINDOW = 16, 512
WEIGHTS = 134_515_008  # the embedding, which is also the last linear, counted once
PAUSE_SECONDS = 0.3  # in which the threads of the process before stop spinning
RECIPES: dict[str, dict[str, Any]] = {"w4a8": {}, "w4a8 head in 4 bits": {"head": GroupScheme(4, 64)}}
MODEL_FILES = ("*.gguf", "model.onnx", "model.onnx.data", "openvino_model.*")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One row of the table: a model on disk and what runs it."""

    method: str
    path: Path
    runner: Runner


def run(folder: Path) -> Benchmark:
    """Build the peers' folders and ours, ask all of them in turns, then measure the loss of each."""
    source = decoder.float_folder(folder / "float")
    tokens = decoder.prose(source)
    peers, our_models = _peers(source, folder), _ours(source, tokens, folder)
    with contextlib.ExitStack() as stack:
        processes = {}
        for number, candidate in enumerate([*peers, *our_models]):
            log = folder / f"{number}.log"
            process = PeerProcess(candidate.runner, candidate.path, THREADS, log)
            processes[candidate.method] = stack.enter_context(process)
        speeds = _speeds(processes, tokens)
        passages = decoder.windows(tokens, WINDOW, LOSS_WINDOWS)
        asked = {each.method: processes[each.method] for each in peers}
        losses = {method: process.ask(do="loss", windows=passages)["nats"] for method, process in asked.items()}
        versions = {method: process.versions for method, process in processes.items()}
    losses |= {candidate.method: _own_loss(candidate.path, passages) for candidate in our_models}
    rows = [_row(c, speeds[c.method], losses[c.method], versions[c.method]) for c in [*peers, *our_models]]
    names = {candidate.method for candidate in peers}
    title = f"SmolLM2-135M-Instruct, {PROMPT} tokens of prompt, {ANSWER} of answer, {THREADS} threads"
    return Benchmark(title, rows, _goals(rows, names) if our_models else [])


def _peers(source: Path, folder: Path) -> list[Candidate]:
    """The peers as their documentation calls them; OpenVINO computes in bfloat16 by default where the CPU can."""
    openvino_folder, onnxruntime_folder = folder / "optimum-intel", folder / "onnxruntime-genai"
    build = ("build", str(source))
    run_module("openvino", "optimum_openvino", *build, str(openvino_folder), log=folder / "optimum-intel.log")
    run_module("genai", "genai_onnxruntime", *build, str(onnxruntime_folder), log=folder / "onnxruntime-genai.log")
    return [
        Candidate("llama.cpp Q4_1", decoder.gguf_file(), Runner("llama", "llamacpp")),
        Candidate("optimum-intel int4 sym g64, default", openvino_folder, Runner("openvino", "optimum_openvino")),
        Candidate("optimum-intel int4 sym g64, f32", openvino_folder, Runner("openvino", "optimum_openvino", ("f32",))),
        Candidate("openvino-genai on the same, default", openvino_folder, Runner("openvino", "genai_openvino")),
        Candidate("openvino-genai on the same, f32", openvino_folder, Runner("openvino", "genai_openvino", ("f32",))),
        Candidate("onnxruntime-genai int4 level 4", onnxruntime_folder, Runner("genai", "genai_onnxruntime")),
    ]


def _ours(source: Path, tokens: Sequence[int], folder: Path) -> list[Candidate]:
    """What qcompile wrote, each run by its runtime's library for generation; calibrated on other prose than is asked.

    What was compiled before is taken as it is: GPTQ of 106 million weights takes minutes.
    """
    calibration = [{"input_ids": np.array([window])} for window in decoder.windows(tokens, WINDOW, 48)[32:]]
    found: list[Candidate] = []
    for backend, (name, settings) in itertools.product(("onnxruntime", "openvino"), RECIPES.items()):
        output = folder / f"qcompile-{backend}-{name}"
        if not output.exists():
            qcompile.compile(
                source,
                Recipe.from_name("w4a8", **settings),
                backend=backend,
                calibration=calibration,
                output=output,
                output_format="genai",
                verify=False,
                tune="none",
            )
        found += ours(f"{name}, {backend}", output)
    return found


def _own_loss(folder: Path, passages: Sequence[Sequence[int]]) -> float:
    """As `decoder.loss`, of an artifact; the file that its runtime's library opens has no logits of all positions."""
    model = open_decoder(qcompile.load(folder))
    losses = []
    for passage in passages:
        ids = np.array(passage)
        losses.append(float(np.mean(negative_log_likelihood(model.logits(ids[None])[0, :-1], ids[1:]))))
    return statistics.mean(losses)


def ours(name: str, folder: Path) -> list[Candidate]:
    """A folder that qcompile wrote, run by this interpreter: its form says by which library, and by `qcompile chat`."""
    if (folder / "genai_config.json").exists():
        return [Candidate(f"qcompile {name}", folder, Runner(OWN, "genai_onnxruntime"))]
    chat = Candidate(f"qcompile {name}, qcompile chat", folder, Runner(OWN, "chat_openvino"))
    return [Candidate(f"qcompile {name}", folder, Runner(OWN, "genai_openvino")), chat]


def _speeds(processes: Mapping[str, PeerProcess], tokens: Sequence[int]) -> dict[str, tuple[float, float]]:
    """Median tokens per second and seconds until the first token, by method; the first round does not count."""
    answers: dict[str, list[dict[str, float]]] = {method: [] for method in processes}
    for number, prompt in enumerate(decoder.windows(tokens, PROMPT, ROUNDS + 1)):
        for method, process in processes.items():
            time.sleep(PAUSE_SECONDS)
            answer = process.ask(do="answer", prompt=prompt, tokens=ANSWER)
            if number > 0:
                answers[method].append(answer)
    return {
        method: tuple(statistics.median(a[key] for a in found) for key in ("decode_tokens_per_s", "first_token_s"))
        for method, found in answers.items()
    }


def _row(candidate: Candidate, speed: tuple[float, float], nats: float, versions: Mapping[str, str]) -> Row:
    size = _bytes(candidate.path)
    return {
        "method": candidate.method,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "tokens/s": speed[0],
        "first token, s": speed[1],
        "MB": size / 1e6,
        "bits per weight": 8 * size / WEIGHTS,
        "loss, nats": nats,
    }


def _bytes(path: Path) -> int:
    """Size of a model without its tokenizer; a GGUF holds its own, of 2 MB."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for pattern in MODEL_FILES for file in path.glob(pattern))


def _goals(rows: Sequence[Row], peers: set[str]) -> list[Goal]:
    """Decoding 1.15 times as fast as the best peer at equal or fewer bits; the first token 1.15 times as soon."""
    theirs = [row for row in rows if row["method"] in peers]
    mine = [row for row in rows if row["method"] not in peers]
    fastest = max(float(row["tokens/s"]) for row in theirs)
    most_bits = max(float(row["bits per weight"]) for row in theirs if float(row["tokens/s"]) == fastest)
    small = [float(row["tokens/s"]) for row in mine if float(row["bits per weight"]) <= most_bits]
    soonest = min(float(row["first token, s"]) for row in theirs) / min(float(row["first token, s"]) for row in mine)
    return [
        Goal("decode, times the best peer's at no more bits", max(small, default=0.0) / fastest, 1.15),
        Goal("first token, times as soon as the best peer's", soonest, 1.15),
    ]
