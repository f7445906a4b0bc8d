"""NNCF's 4-bit weights on the model that optimum-intel exports: symmetric, with and without what reads data.

Started as `METHOD SOURCE TARGET` with {"bits", "group_size", "calibration", "passages"} as JSON on standard input;
TARGET is a folder. The last line on standard output is {"seconds": s, "nats": loss}: scales that NNCF leaves in the
graph are no weights, so the loss is measured here: in float32, without quantized activations and a quantized cache.
The embedding, which is also lm_head, is in 8 bits per row with zero points: NNCF's default.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import nncf
import numpy as np
import openvino
from optimum.intel import OVModelForCausalLM

from benchmarks.peers_llm.protocol import nats

METHODS: Mapping[str, Mapping[str, bool]] = {
    "nncf": {},
    "nncf-scale-estimation": {"scale_estimation": True},
    "nncf-awq": {"awq": True},
    "nncf-awq-scale-estimation": {"awq": True, "scale_estimation": True},
    "nncf-gptq": {"gptq": True},
}
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    "KV_CACHE_PRECISION": "f32",
}


def feed(ids: list[int]) -> dict[str, np.ndarray]:
    """Inputs of the stateful model for one sequence without a past."""
    count = len(ids)
    return {
        "input_ids": np.array([ids], dtype=np.int64),
        "attention_mask": np.ones((1, count), dtype=np.int64),
        "position_ids": np.arange(count, dtype=np.int64)[None],
        "beam_idx": np.zeros(1, dtype=np.int32),
    }


def loss(model: openvino.Model, passages: list[list[int]]) -> float:
    """Mean loss of the passages in nats."""
    request = openvino.Core().compile_model(model, "CPU", EXACT).create_infer_request()
    names = {name for value in request.model_inputs for name in value.names}
    losses = []
    for passage in passages:
        request.reset_state()
        inputs = {name: array for name, array in feed(passage).items() if name in names}
        losses.append(nats(request.infer(inputs)["logits"][0], passage))
    return float(np.mean(losses))


def main(method: str, source: str, target: str) -> None:
    """Export, compress, save, and measure."""
    task = json.load(sys.stdin)
    if task["bits"] != 4:
        sys.exit("NNCF has symmetric integers of 4 and 8 bits")
    model = OVModelForCausalLM.from_pretrained(source, export=True, load_in_8bit=False, compile=False).model
    names = {name for value in model.inputs for name in value.names}
    samples = [{name: array for name, array in feed(ids).items() if name in names} for ids in task["calibration"]]
    settings = METHODS[method]
    start = time.perf_counter()
    model = nncf.compress_weights(
        model,
        mode=nncf.CompressWeightsMode.INT4_SYM,
        group_size=task["group_size"],
        ratio=1.0,
        dataset=nncf.Dataset(samples) if settings else None,
        subset_size=len(samples),
        **settings,
    )
    seconds = time.perf_counter() - start
    Path(target).mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, Path(target) / "openvino_model.xml", compress_to_fp16=False)
    print(json.dumps({"seconds": seconds, "nats": loss(model, task["passages"]) if task["passages"] else None}))


if __name__ == "__main__":
    main(*sys.argv[1:4])
