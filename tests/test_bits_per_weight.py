"""Bits for each number of the weights: those of the recipe and its scales on paper, and where they are shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import qcompile
from qcompile.bit_allocation import effective_bits
from qcompile.bits_per_weight import ALL, QUANTIZED, bits_per_weight
from qcompile.contract import Pass
from qcompile.errors import ArtifactError
from qcompile.manifest import MANIFEST, Manifest
from qcompile.passes.quantize_codebooks import QuantizeCodebooks
from qcompile.passes.quantize_embeddings import QuantizeEmbeddings
from qcompile.passes.quantize_weights import QuantizeWeights
from qcompile.recipe import Recipe
from qcompile.scheme import GroupScheme
from qcompile.sealed_json import sealed, unsealed
from tests.cli.commands import run
from tests.passes.quantizable import calibrator, parse

INPUTS, OUTPUTS = 192, 160


def model(inputs: int = INPUTS) -> ir.Model:
    random = np.random.default_rng(0)
    text = "h = RMSNormalization(x, g) p = MatMul(h, w) y = Add(p, b)"
    return parse(
        f"g (float[n, {inputs}] x) => (float[n, {OUTPUTS}] y) {{ {text} }}",
        g=np.ones(inputs, np.float32),
        w=random.normal(size=(inputs, OUTPUTS)).astype(np.float32),
        b=random.normal(size=OUTPUTS).astype(np.float32),
    )


def found(step: Pass, inputs: int = INPUTS) -> dict[str, float]:
    after = model(inputs)
    step(after)
    return dict(bits_per_weight(model(inputs), after))


@pytest.mark.parametrize("inputs", [INPUTS, 1, 33])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("group_size", [32, 64, -1])
def test_integers_and_scales_are_those_on_paper(bits: int, sym: bool, group_size: int, inputs: int) -> None:
    told = found(QuantizeWeights(bits, group_size, sym, head=None), inputs)
    paper, size = effective_bits(GroupScheme(bits, group_size, sym), inputs), inputs * OUTPUTS
    assert told[QUANTIZED] == pytest.approx(paper)
    assert told[ALL] == pytest.approx((paper * size + 32 * (inputs + OUTPUTS)) / (size + inputs + OUTPUTS))


def test_a_bias_that_was_corrected_is_no_scale() -> None:
    settings = QuantizeWeights(4, 64, head=None, calibrator=calibrator(model()))
    assert found(settings)[QUANTIZED] == pytest.approx(4.5)


@pytest.mark.parametrize(("double", "paper"), [(False, 4 + 32 / 64), (True, 4 + 8 / 64 + 32 / 64 / 256)])
def test_codebooks(double: bool, paper: float) -> None:
    levels = 32 * (16 + double * (256 + 1))  # of the weights, of the scales, and what is added to those
    expected = paper + levels / (INPUTS * OUTPUTS)
    assert found(QuantizeCodebooks(64, double, head=None))[QUANTIZED] == pytest.approx(expected, rel=1e-3)


def test_int8_in_and_out() -> None:
    """A table has a scale for each row; a weight that came in integers counts among all, and is not quantized anew."""
    table = np.random.default_rng(0).normal(size=(2048, 64)).astype(np.float32)
    body = "e = Gather(t, ids) d = DequantizeLinear<axis = 1>(w, s) y = MatMul(e, d)"
    text = f"g (int64[n] ids) => (float[n, 48] y) {{ {body} }}"
    weights = {"t": table, "w": np.ones((64, 48), np.int8), "s": np.ones(48, np.float32)}
    before, after = parse(text, **weights), parse(text, **weights)
    assert bits_per_weight(before, after) == {}
    QuantizeEmbeddings()(after)
    told = bits_per_weight(before, after)
    assert told[QUANTIZED] == pytest.approx(8 + 32 / 64)
    assert told[ALL] == pytest.approx((table.size * 8.5 + 64 * 48 * 8 + 48 * 32) / (table.size + 64 * 48 + 48))


def test_the_manifest_the_report_and_inspect_say_it(tmp_path: Path) -> None:
    plan = Recipe.from_name("w4a16-rtn", bits=3, sym=False, group_size=32)
    artifact = qcompile.compile(model(), plan, output=tmp_path / "a")
    told = dict(artifact.manifest.bits_per_weight or {})
    assert told == dict(artifact.report.bits_per_weight) == dict(qcompile.load(tmp_path / "a").report.bits_per_weight)
    assert told[QUANTIZED] == pytest.approx(3 + 36 / 32)
    line = f"weights   4.125 bits each with scales and zero points, {told[ALL]:.4g} with those left in float"
    assert line in artifact.report.summary()
    assert line in run("inspect", tmp_path / "a").stdout
    assert json.loads(run("inspect", tmp_path / "a", "--json").stdout)["bits_per_weight"] == told


def test_manifests_from_before_are_read_and_wrong_ones_are_not(tmp_path: Path) -> None:
    folder = qcompile.compile(model(), "float", output=tmp_path / "a").path
    content = (folder / MANIFEST).read_bytes()
    assert b"bits_per_weight" not in content  # as before there was this
    assert Manifest.read(folder).bits_per_weight is None
    for wrong in ({"all": "4"}, [4.0], 4.0):
        (folder / MANIFEST).write_bytes(sealed(unsealed(content) | {"bits_per_weight": wrong}))
        with pytest.raises(ArtifactError, match="an entry is missing or wrong"):
            Manifest.read(folder)
