"""all-MiniLM-L6-v2 at sequence 128: float, the runtimes' own quantizers and qcompile, on both runtimes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import qcompile
from benchmarks import peers
from benchmarks.encoder import CALIBRATION_SAMPLES, embeddings, error, export
from benchmarks.results import Benchmark, Goal, Row
from benchmarks.sessions import OPEN, Run, open_onnxruntime, open_openvino, size_in_mb
from qcompile.latency import interleaved_medians
from qcompile.models import minilm, sentence_similarity, texts
from qcompile.session import Feed

RECIPES = ("w8a8-static", "w8a8-dynamic", "smoothquant-o3")
BATCHES, SECONDS = (1, 8), 40

Candidates = dict[tuple[str, str], tuple[Path, Run]]


def run(folder: Path) -> Benchmark:
    """Build every candidate, then measure them all interleaved."""
    encoder = minilm.load()
    calibration = list(encoder.batches(texts.calibration_texts(CALIBRATION_SAMPLES)))
    candidates = _peers(encoder, calibration, folder) | _ours(encoder, calibration, folder)
    latency = [_latency(encoder, candidates, batch) for batch in BATCHES]
    rows = [_row(encoder, candidates, key, latency) for key in sorted(candidates)]
    return Benchmark("all-MiniLM-L6-v2, sequence 128, error on held-out text", rows, _goals(rows))


def _peers(encoder: minilm.SentenceEncoder, calibration: Sequence[Feed], folder: Path) -> Candidates:
    # onnxruntime's quantizers write invalid models from opset 23; NNCF reads it.
    old, new = export(encoder, folder / "float18.onnx", 18), export(encoder, folder / "float23.onnx", 23)
    dynamic = peers.onnxruntime_dynamic(old, folder / "quantize_dynamic.onnx")
    static = peers.onnxruntime_static(old, folder / "quantize_static.onnx", calibration)
    transformer = peers.nncf_static(new, folder / "nncf_quantize.xml", calibration)
    weights = peers.nncf_weights(new, folder / "nncf_weights.xml")
    return {
        ("onnxruntime", "float"): (new, open_onnxruntime(new)),
        ("onnxruntime", "quantize_dynamic"): (dynamic, open_onnxruntime(dynamic)),
        ("onnxruntime", "quantize_static"): (static, open_onnxruntime(static)),
        ("openvino", "float"): (new, open_openvino(new)),
        ("openvino", "nncf.quantize"): (transformer, open_openvino(transformer)),
        ("openvino", "nncf.compress_weights"): (weights, open_openvino(weights, settings=peers.DYNAMIC_QUANTIZATION)),
    }


def _ours(encoder: minilm.SentenceEncoder, calibration: Sequence[Feed], folder: Path) -> Candidates:
    model = qcompile.trace(encoder.module, example_inputs=encoder.example(), dynamic_shapes=encoder.dynamic_shapes())
    candidates: Candidates = {}
    for backend, open_file in OPEN.items():
        for recipe in RECIPES:
            artifact = qcompile.compile(
                model, recipe, backend=backend, calibration=calibration, output=folder / f"{recipe}-{backend}"
            )
            candidates[backend, f"qcompile {recipe}"] = artifact.model_path, open_file(artifact.model_path)
    return candidates


def _latency(encoder: minilm.SentenceEncoder, candidates: Candidates, batch: int) -> dict[tuple[str, str], float]:
    feed = next(encoder.batches(texts.held_out_texts(batch), batch=batch))
    named = {"\n".join(key): run for key, (_, run) in sorted(candidates.items())}
    runs = {name: functools.partial(run, feed) for name, run in named.items()}
    times = interleaved_medians(runs, seconds=SECONDS)
    return {key: times["\n".join(key)] for key in candidates}


def _row(
    encoder: minilm.SentenceEncoder,
    candidates: Candidates,
    key: tuple[str, str],
    latency: Sequence[dict[tuple[str, str], float]],
) -> Row:
    path, run = candidates[key]
    _, reference = candidates[key[0], "float"]
    row: dict[str, str | float] = {"runtime": key[0], "method": key[1], "MB": size_in_mb(path)}
    for batch, times in zip(BATCHES, latency, strict=True):
        row[f"ms, batch {batch}"] = times[key]
        row[f"x float, batch {batch}"] = times[key[0], "float"] / times[key]
    row["error"] = error(encoder, run, reference)
    row["wordsim353"] = sentence_similarity.wordsim353_correlation(
        lambda words: embeddings(encoder, run, words, length=16)
    )
    return row


def _goals(rows: Sequence[Row]) -> list[Goal]:
    """Static at least as fast as each runtime's own quantizer with half of its error; dynamic with a fixed bound."""

    def value(runtime: str, method: str, column: str) -> float:
        return float(next(row[column] for row in rows if (row["runtime"], row["method"]) == (runtime, method)))

    static, dynamic = "qcompile w8a8-static", "qcompile w8a8-dynamic"
    goals = []
    for batch in BATCHES:
        ms, times_float = f"ms, batch {batch}", f"x float, batch {batch}"
        ort_peer = value("onnxruntime", "quantize_dynamic", ms) / value("onnxruntime", static, ms)
        nncf_peer = value("openvino", "nncf.quantize", ms) / value("openvino", static, ms)
        goals += [
            Goal(f"ORT static, times as fast as quantize_dynamic, batch {batch}", ort_peer, 1.5),
            Goal(f"ORT static, times as fast as float, batch {batch}", value("onnxruntime", static, times_float), 2.5),
            Goal(f"OpenVINO static, times as fast as NNCF, batch {batch}", nncf_peer, 1.0),
            Goal(
                f"OpenVINO dynamic, times as fast as float, batch {batch}", value("openvino", dynamic, times_float), 1.4
            ),
            Goal(
                f"ORT dynamic, times as fast as float, batch {batch}", value("onnxruntime", dynamic, times_float), 1.2
            ),
        ]
    ort_half = value("onnxruntime", "quantize_dynamic", "error") / 2
    nncf_half = value("openvino", "nncf.quantize", "error") / 2
    return [
        *goals,
        Goal("ORT static, error", value("onnxruntime", static, "error"), ort_half, at_most=True),
        Goal("OpenVINO static, error", value("openvino", static, "error"), nncf_half, at_most=True),
        Goal("OpenVINO dynamic, error", value("openvino", dynamic, "error"), 0.0008, at_most=True),
        Goal("ORT dynamic, error", value("onnxruntime", dynamic, "error"), 0.0010, at_most=True),
    ]
