"""What every backend has to do: the tests that each backend's test class inherits.

A runtime and the reference may round a value that lies between two quantization steps differently; so a result may be
off by the case's `step`: one quantization step of one activation times the largest weight (plus one step of the output
where that is quantized), and by the rounding of float32 sums.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile import backends
from qcompile.errors import InputError
from tests.backends.portable import (
    Case,
    attention_case,
    conv_case,
    decoder_case,
    dynamic_per_tensor,
    dynamic_per_token,
    fixed_shapes,
    linear_case,
    parse,
    reference,
    static_shared,
    two_layers,
)

FLOAT32_ROUNDING = 1e-5


class BackendConformance:
    """Inherit, set `name`, and say how to count the integer kernels of a written model.

    Attributes:
        name: name of the backend.
        dynamic_steps: how many steps a result of dynamic quantization may be off. A runtime that quantizes in
            another granularity than the model says rounds every value differently, and needs more than one.
    """

    name: ClassVar[str]
    dynamic_steps: ClassVar[float] = 1.0

    @pytest.fixture
    def backend(self) -> Any:
        return backends.get(self.name)

    def integer_kernels(self, model_file: Path) -> int:
        """Number of linears and convolutions that the runtime, asked after its optimizations, runs in integers."""
        raise NotImplementedError

    def check(self, backend: Any, case: Case, folder: Path, *, integer: int | None = None) -> backends.Lowered:
        before = ir.to_proto(case.model).SerializeToString(deterministic=True)
        expected = reference(case.model, case.feed)
        lowered = backend.lower(case.model, folder, target=None)
        assert ir.to_proto(case.model).SerializeToString(deterministic=True) == before, "lower changed its argument"
        assert sorted(path.name for path in folder.iterdir()) == sorted(lowered.files)
        artifact = backend.open_artifact(folder / lowered.model_file, threads=1).run(case.feed)
        session = backend.open_session(case.model, threads=1).run(case.feed)
        for results in (artifact, session):
            assert list(results) == list(expected)
            for name, result in results.items():
                assert result.dtype == expected[name].dtype
                assert result.shape == expected[name].shape
                magnitude = float(np.abs(expected[name]).max())
                excess = np.abs(result - expected[name]) - case.step - FLOAT32_ROUNDING * magnitude
                assert excess.max() <= 0, f"{name} is off by {excess.max():.3g} more than one quantization step"
        kernels = self.integer_kernels(folder / lowered.model_file)
        assert kernels == (case.integer if integer is None else integer)
        kept = [finding for finding in lowered.findings if finding.action == "kept"]
        assert len(kept) == case.integer - kernels, f"of {case.integer} layers {kernels} are integer; told: {kept}"
        return lowered

    def test_float_model(self, backend: Any, tmp_path: Path) -> None:
        rng = np.random.default_rng(3)
        model = parse(
            """(float[N,S,16] x, float[N,S,16] r) => (float[N,S,16] y, float[N,S,16] h)
            {
                m = MatMul (x, w)
                a = Add (m, b)
                g = Gelu (a)
                h = Add (g, r)
                y = LayerNormalization <axis = -1, epsilon = 0.00001> (h, gamma, beta)
            }""",
            w=rng.standard_normal((16, 16)).astype(np.float32),
            b=rng.standard_normal(16).astype(np.float32),
            gamma=rng.standard_normal(16).astype(np.float32),
            beta=rng.standard_normal(16).astype(np.float32),
        )
        feed = {name: rng.standard_normal((2, 3, 16)).astype(np.float32) for name in "xr"}
        self.check(backend, Case(model, feed), tmp_path)

    @pytest.mark.parametrize("dtype", ["uint8", "int8"])
    @pytest.mark.parametrize("sym", [True, False])
    @pytest.mark.parametrize("per_tensor", [True, False])
    def test_static_linear(self, backend: Any, tmp_path: Path, dtype: str, sym: bool, per_tensor: bool) -> None:
        self.check(backend, linear_case(dtype, sym=sym, per_tensor=per_tensor), tmp_path)

    def test_static_linear_without_bias(self, backend: Any, tmp_path: Path) -> None:
        self.check(backend, linear_case(bias=False), tmp_path)

    def test_static_linear_of_a_matrix(self, backend: Any, tmp_path: Path) -> None:
        self.check(backend, linear_case(shape=(7, 32), names="N"), tmp_path)

    def test_dynamic_batch(self, backend: Any, tmp_path: Path) -> None:
        case = linear_case()
        lowered = self.check(backend, case, tmp_path)
        session = backend.open_artifact(tmp_path / lowered.model_file, threads=1)
        whole = session.run(case.feed)["y"]
        for row in range(2):
            single = session.run({"x": case.feed["x"][row : row + 1]})["y"]
            np.testing.assert_allclose(single, whole[row : row + 1], rtol=0, atol=float(case.step))

    @pytest.mark.parametrize("dtype", ["uint8", "int8"])
    @pytest.mark.parametrize("sym", [True, False])
    @pytest.mark.parametrize("fixed", [True, False])
    def test_two_linears(self, backend: Any, tmp_path: Path, dtype: str, sym: bool, fixed: bool) -> None:
        case = two_layers("MatMul", dtype, sym=sym)
        self.check(backend, fixed_shapes(case) if fixed else case, tmp_path)

    @pytest.mark.parametrize("dtype", ["uint8", "int8"])
    @pytest.mark.parametrize("sym", [True, False])
    @pytest.mark.parametrize("fixed", [True, False])
    def test_two_convolutions(self, backend: Any, tmp_path: Path, dtype: str, sym: bool, fixed: bool) -> None:
        requantized = "yq = QuantizeLinear (m, s_r, z)\n y = DequantizeLinear (yq, s_r, z)"
        case = two_layers("Conv", dtype, sym=sym, behind=requantized)
        case = dataclasses.replace(case, step=case.step + 0.1)
        self.check(backend, fixed_shapes(case) if fixed else case, tmp_path)

    @pytest.mark.parametrize("dtype", ["uint8", "int8"])
    def test_pooling_behind_a_quantized_value(self, backend: Any, tmp_path: Path, dtype: str) -> None:
        """ONNX Runtime moves Q/DQ pairs behind operators of known shapes, and must not mix their types."""
        behind = """mq = QuantizeLinear (m, s_r, z)
            md = DequantizeLinear (mq, s_r, z)
            p = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (md)
            y = Sigmoid (p)"""
        case = two_layers("Conv", dtype, sym=True, behind=behind)
        self.check(backend, fixed_shapes(dataclasses.replace(case, step=case.step + 0.1)), tmp_path)

    def test_values_outside_of_the_range_saturate(self, backend: Any, tmp_path: Path) -> None:
        case = linear_case("int8", sym=False)
        self.check(backend, dataclasses.replace(case, feed={"x": case.feed["x"] * 50}), tmp_path)

    def test_static_shared_input(self, backend: Any, tmp_path: Path) -> None:
        self.check(backend, static_shared(), tmp_path)

    def test_explicit_scale_of_channels(self, backend: Any, tmp_path: Path) -> None:
        case = linear_case()
        scale = np.random.default_rng(4).uniform(0.5, 2, 32).astype(np.float32)
        model = ir.to_proto(case.model)
        model.graph.node[0].input[0] = "scaled"
        model.graph.node.insert(0, onnx.helper.make_node("Mul", ["x", "c"], ["scaled"]))
        model.graph.initializer.append(onnx.numpy_helper.from_array(scale, "c"))
        self.check(backend, dataclasses.replace(case, model=ir.from_proto(model)), tmp_path)

    @pytest.mark.parametrize("bias", ["int32", "float32"])
    @pytest.mark.parametrize("groups", [1, 8])
    @pytest.mark.parametrize(("behind", "zero_point"), [("", 110), ("Relu (c)", 0), ("Clip (c, low, high)", 0)])
    def test_conv(self, backend: Any, tmp_path: Path, bias: str, groups: int, behind: str, zero_point: int) -> None:
        case = conv_case(bias=bias, groups=groups, behind=behind, zero_point=zero_point)
        self.check(backend, case, tmp_path)

    def test_conv_transpose(self, backend: Any, tmp_path: Path) -> None:
        integer = int(any(each.operator == "ConvTranspose" for each in backend.capabilities))
        self.check(
            backend, conv_case(kind="ConvTranspose", bias="float32", requantized=False), tmp_path, integer=integer
        )

    @pytest.mark.parametrize("make", [dynamic_per_tensor, dynamic_per_token])
    def test_dynamic(self, backend: Any, tmp_path: Path, make: Any) -> None:
        case = make()
        self.check(backend, dataclasses.replace(case, step=self.dynamic_steps * case.step), tmp_path)

    def test_embedding(self, backend: Any, tmp_path: Path) -> None:
        rng = np.random.default_rng(5)
        model = parse(
            """(int64[N,S] ids) => (float[N,S,16] y)
            {
                r = Gather <axis = 0> (w, ids)
                f = Cast <to = 1> (r)
                t = Gather <axis = 0> (ws, ids)
                y = Mul (f, t)
            }""",
            w=rng.integers(-127, 128, (50, 16)).astype(np.int8),
            ws=rng.uniform(0.01, 0.1, (50, 1)).astype(np.float32),
        )
        self.check(backend, Case(model, {"ids": rng.integers(0, 50, (2, 7))}), tmp_path)

    def test_attention(self, backend: Any, tmp_path: Path) -> None:
        self.check(backend, attention_case(), tmp_path)

    def test_decoder_attention(self, backend: Any, tmp_path: Path) -> None:
        self.check(backend, decoder_case(), tmp_path)

    @pytest.mark.parametrize(
        ("change", "subject", "reason"),
        [
            ({"x": None}, "'x'", "missing"),
            ({"z": np.zeros((1, 1, 32), np.float32)}, "'z'", "no such input"),
            ({"x": np.zeros((1, 1, 32), np.float64)}, "'x'", "float64"),
            ({"x": np.zeros((1, 32), np.float32)}, "'x'", "shape"),
            ({"x": np.zeros((1, 1, 31), np.float32)}, "'x'", "shape"),
        ],
    )
    def test_wrong_feed(self, backend: Any, change: dict[str, Any], subject: str, reason: str) -> None:
        case = linear_case()
        session = backend.open_session(case.model, threads=1)
        feed = {name: array for name, array in {**case.feed, **change}.items() if array is not None}
        with pytest.raises(InputError) as caught:
            session.run(feed)
        assert subject in caught.value.subject
        assert reason in caught.value.reason

    @pytest.mark.parametrize("feed", [None, [np.zeros((1, 1, 32), np.float32)], {0: np.zeros((1, 1, 32), np.float32)}])
    def test_a_feed_without_names(self, backend: Any, feed: Any) -> None:
        with pytest.raises(InputError, match=r"it is not \{name: array\}. Give x by name"):
            backend.open_session(linear_case().model, threads=1).run(feed)

    @pytest.mark.parametrize(
        ("array", "reason"),
        [([[[0.0] * 32]], "it is a list"), (np.zeros((1, 1, 32), "bfloat16"), "its type is bfloat16, not float32")],
    )
    def test_a_value_that_is_no_array_of_the_type(self, backend: Any, array: Any, reason: str) -> None:
        with pytest.raises(InputError) as caught:
            backend.open_session(linear_case().model, threads=1).run({"x": array})
        assert (caught.value.subject, caught.value.reason) == ("input 'x'", reason)

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
    def test_an_input_that_numpy_has_no_type_for(self, backend: Any, dtype: str) -> None:
        model = parse("(bfloat16[N] x) => (float[N] y) { y = Cast<to = 1>(x) }")
        with pytest.raises(InputError, match="input 'x': the runtime takes no numpy array of its type"):
            backend.open_session(model, threads=1).run({"x": np.zeros(2, dtype)})
