from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import qcompile
from qcompile import backends
from qcompile.passes.resolve_auto_pads import ResolveAutoPads
from qcompile.pipeline import apply_pass
from tests.backends.portable import parse

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(2, 4, 8, 9)).astype(np.float32)
DYNAMIC, STATIC = "N,4,H,W", "N,4,8,9"
SAME = 'auto_pad = "SAME_{}", strides = [2, 2]'


def transposed(attributes: str, dims: str, kernel: tuple[int, int]) -> ir.Model:
    weight = RANDOM.normal(size=(4, 3, *kernel)).astype(np.float32)
    return parse(f"(float[{dims}] x) => (float[N,3,A,B] y) {{ y = ConvTranspose<{attributes}>(x, w) }}", w=weight)


RESOLVED = [
    (SAME.format("UPPER"), DYNAMIC, (3, 2), [0, 0, 1, 0]),
    (SAME.format("LOWER"), DYNAMIC, (3, 2), [1, 0, 0, 0]),
    (SAME.format("UPPER"), DYNAMIC, (4, 7), [1, 2, 1, 3]),
    (SAME.format("LOWER"), DYNAMIC, (1, 7), [0, 3, 0, 2]),
    (SAME.format("UPPER") + ", dilations = [2, 1]", DYNAMIC, (3, 3), [1, 0, 2, 1]),
    (SAME.format("UPPER") + ", output_padding = [1, 0]", DYNAMIC, (3, 3), [1, 0, 1, 1]),
    (SAME.format("UPPER") + ", output_shape = [16, 17]", STATIC, (3, 2), [0, 0, 1, 1]),
    ("strides = [2, 2], output_shape = [14, 17]", STATIC, (3, 2), [2, 1, 1, 0]),
    ('auto_pad = "VALID", strides = [2, 2]', DYNAMIC, (3, 3), [0, 0, 0, 0]),
]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("attributes", "dims", "kernel", "pads"), RESOLVED)
def test_pads_give_what_the_runtime_gave(
    attributes: str, dims: str, kernel: tuple[int, int], pads: list[int], backend: str
) -> None:
    model = transposed(attributes, dims, kernel)
    expected = backends.get("onnxruntime").open_session(model).run({"x": X})["y"]
    (finding,) = apply_pass(ResolveAutoPads(), model).findings  # type: ignore[attr-defined]
    assert str(pads) in finding.reason
    node = model.graph.node(0)
    assert list(node.attributes.get_ints("pads", ())) == pads
    assert not {"auto_pad", "output_shape"} & set(node.attributes)
    found = backends.get(backend).open_session(model).run({"x": X})["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not ResolveAutoPads()(model).modified


@pytest.mark.parametrize(
    ("attributes", "dims"),
    [
        ("strides = [2, 2], pads = [1, 0, 1, 0]", STATIC),
        ('auto_pad = "NOTSET"', STATIC),
        ("strides = [2, 2], output_shape = [16, 17]", DYNAMIC),
        ("strides = [2, 2], output_shape = [18, 20]", STATIC),
    ],
)
def test_refusals(attributes: str, dims: str) -> None:
    assert not ResolveAutoPads()(transposed(attributes, dims, (3, 2))).modified


def test_a_kernel_of_unknown_size_and_a_convolution_stay() -> None:
    text = '(float[N,4,H,W] x, float[4,3,A,B] w) => (float[?] y) {{ y = {}<auto_pad = "SAME_UPPER">(x, w) }}'
    assert not ResolveAutoPads()(parse(text.format("ConvTranspose"))).modified
    assert not ResolveAutoPads()(parse(text.format("Conv").replace("4,3,A,B", "3,4,3,3"))).modified


def test_openvino_compiles_a_decoder_of_dynamic_size(tmp_path: Path) -> None:
    model = transposed(SAME.format("LOWER"), DYNAMIC, (3, 3))
    artifact = qcompile.compile(model, "float", backend="openvino", calibration=[{"x": X}], output=tmp_path / "out")
    assert artifact.run({"x": X})["y"].shape == (2, 3, 16, 18)
