"""The runtimes' own quantizers, called the way their documentation recommends for this kind of model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import nncf
import numpy as np
import openvino
from onnxruntime import quantization

from qcompile.session import Feed


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Feeds one by one, as onnxruntime asks for them."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self.feeds: Iterator[Feed] = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        feed = next(self.feeds, None)
        return None if feed is None else dict(feed)


def onnxruntime_dynamic(model: Path, output: Path) -> Path:
    """ONNX Runtime's quantize_dynamic: INT8 weights per channel, activations per tensor at run time."""
    quantization.quantize_dynamic(model, output, weight_type=quantization.QuantType.QInt8, per_channel=True)
    return output


def onnxruntime_static(model: Path, output: Path, calibration: Sequence[Feed], *, per_channel: bool = True) -> Path:
    """ONNX Runtime's quantize_static with its defaults: QDQ, INT8, minmax; weights per channel or per tensor."""
    prepared = output.with_suffix(".prepared.onnx")
    quantization.shape_inference.quant_pre_process(model, prepared, skip_symbolic_shape=True)
    quantization.quantize_static(
        prepared, output, _Reader(calibration), quant_format=quantization.QuantFormat.QDQ, per_channel=per_channel
    )
    prepared.unlink()
    return output


def nncf_static(model: Path, output: Path, calibration: Sequence[Feed], *, transformer: bool = True) -> Path:
    """NNCF's post-training quantization for OpenVINO; its settings for transformers include SmoothQuant."""
    quantized = nncf.quantize(
        openvino.Core().read_model(model),
        nncf.Dataset([dict(feed) for feed in calibration]),
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        subset_size=len(calibration),
    )
    openvino.save_model(quantized, output, compress_to_fp16=False)
    return output


def nncf_weights(model: Path, output: Path) -> Path:
    """NNCF's INT8 weight compression; open it with DYNAMIC_QUANTIZATION to quantize activations at run time."""
    compressed = nncf.compress_weights(openvino.Core().read_model(model), mode=nncf.CompressWeightsMode.INT8_SYM)
    openvino.save_model(compressed, output, compress_to_fp16=False)
    return output


DYNAMIC_QUANTIZATION = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 32}
