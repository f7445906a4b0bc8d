"""The named recipes, as the data that `Recipe.from_data` reads: importing them imports no pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_INT8_WEIGHTS = {"dtype": "int8", "granularity": "per_channel", "sym": True, "dynamic": False}
_PAPER_WEIGHTS = _INT8_WEIGHTS | {"granularity": "per_tensor"}
_STATIC = {"dtype": "uint8", "granularity": "per_tensor", "sym": False, "dynamic": False}
_PAPER_STATIC = {"dtype": "int8", "granularity": "per_tensor", "sym": True, "dynamic": False}
_PER_TENSOR_DYNAMIC = {"dtype": "uint8", "granularity": "per_tensor", "sym": False, "dynamic": True}
_PER_TOKEN_DYNAMIC = {"dtype": "int8", "granularity": "per_token", "sym": True, "dynamic": True}


# Measured on four models: scales fold into few convolutions, and for the others saturating the rare peaks of what they
# read and write costs less than representing them.
_CONVOLUTIONS = {"convolution_observer": "mse", "min_convolution_sqnr_db": 20.0, "bias_correction": "convolutions"}


def _ours(activations: Mapping[str, Any]) -> list[Any]:
    schemes = {"activations": activations, "weights": _INT8_WEIGHTS}
    return [
        {"smooth_activations": {"alpha": "auto", **schemes}},
        "fold_scales",
        {"insert_qdq": {**schemes, "rounding": "gptq", **({} if activations["dynamic"] else _CONVOLUTIONS)}},
        "quantize_embeddings",
    ]


def _paper(activations: Mapping[str, Any]) -> list[Any]:
    """Return the steps of SmoothQuant (Xiao et al. 2022): table 2 and figure 6; alpha of section 4."""
    schemes = {"activations": activations, "weights": _PAPER_WEIGHTS}
    return [
        {"smooth_activations": {"alpha": 0.5, **schemes}},
        "fold_scales",
        {"insert_qdq": schemes},
        {"quantize_attention": {"activations": activations}},
    ]


def _weights_only(solver: str, **settings: Any) -> list[Any]:
    return [{"quantize_weights": {"solver": solver, **settings}}, "quantize_embeddings"]


_AWQ = ["search_scales", "fold_scales", *_weights_only("rtn", range_grid=10)]

_VECTOR_WISE = {"activations": _PER_TOKEN_DYNAMIC, "weights": _INT8_WEIGHTS}


NAMED: dict[str, tuple[str, list[Any]]] = {
    "float": ("nothing is quantized; the model is brought to canonical form", []),
    "w8a8-static": ("INT8, scales of activations from calibration: the fastest", _ours(_STATIC)),
    "w8a8-dynamic": ("INT8, one scale per token at run time: the closest to float", _ours(_PER_TOKEN_DYNAMIC)),
    "llm-int8": (
        "LLM.int8(): as w8a8-dynamic without smoothing, input channels with outliers in float",
        [{"split_outliers": _VECTOR_WISE}, {"insert_qdq": {**_VECTOR_WISE, "rounding": "gptq"}}, "quantize_embeddings"],
    ),
    "smoothquant-o1": ("SmoothQuant's O1: per-token dynamic activations", _paper(_PER_TOKEN_DYNAMIC)),
    "smoothquant-o2": ("SmoothQuant's O2: per-tensor dynamic activations", _paper(_PER_TENSOR_DYNAMIC)),
    "smoothquant-o3": ("SmoothQuant's O3: per-tensor static activations", _paper(_PAPER_STATIC)),
    "w4a16-rtn": ("weights of 4 bits in groups, rounded to nearest; no data", _weights_only("rtn", range_grid=0)),
    "w4a16-hqq": (
        "weights of 4 bits in groups, half-quadratic: a smaller error of weights; no data",
        _weights_only("hqq"),
    ),
    "w4a16-awq": ("weights of 4 bits in groups, scales of channels by calibration folded upstream", _AWQ),
    "w4a16-gptq": ("weights of 4 bits in groups, by what calibration sees: close to float", _weights_only("gptq")),
    "w4a16-learned": (
        "as w4a16-gptq, each layer made to undo the errors of those in front of it: the closest",
        _weights_only("gptq", sweeps=4, calibration="asymmetric"),
    ),
    "w4a16-inc": (
        "weights of 4 bits in groups, tuned by AutoRound (extra inc)",
        _weights_only("inc", calibration="asymmetric"),
    ),
    "nf4": ("weights in the 16 levels of NF4; no data", ["quantize_codebooks", "quantize_embeddings"]),
    "nf4-dq": (
        "as nf4, its scales in 8 bits: 0.4 bits less for each weight",
        [{"quantize_codebooks": {"double_quantization": True}}, "quantize_embeddings"],
    ),
    "w4a8": (
        "as w4a16-gptq, activations of 8 bits at run time: several times as fast for one token",
        ["quantize_caches", *_weights_only("gptq"), "round_activations"],
    ),
    "keep": (
        "weights bit for bit as a GGUF file has them; activations of 8 bits at run time",
        ["keep_weights", "round_activations"],
    ),
}
"""Name -> one sentence, and the steps."""
