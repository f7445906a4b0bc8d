"""The kernels take what the backend gives them, and compute what torch does: in Triton's interpreter, without a card.

In a process of its own: Triton reads whether it interprets when it is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[3]

CODE = """
import sys
sys.path.append({root!r})
import numpy as np
import onnx_ir as ir
from qcompile.backends.triton.lowering import fused
from qcompile.backends.triton.session import load
from tests.backends.portable import dynamic_per_tensor, dynamic_per_token, linear_case
from tests.backends.triton import test_codebook_linears, test_gates, test_grouped_linears, test_joined_linears
from tests.backends.triton import test_normalized_tokens, test_outlier_linears, test_residual_norms
from tests.backends.triton.rewritten import kernels

cases = [(case.model, case.feed) for case in (linear_case("uint8"), dynamic_per_tensor(), dynamic_per_token())]
for kind, low, high, zero in ((ir.DataType.INT4, -4, 3, None), (ir.DataType.UINT4, 0, 15, 15)):
    cases.append((test_grouped_linears.model(kind, low, high, zero=zero), {{"x": test_grouped_linears.X}}))
for norm in test_normalized_tokens.NORMS.values():
    cases.append((test_normalized_tokens.model(norm), {{"x": test_normalized_tokens.X}}))
cases.append((test_outlier_linears.model(), {{"x": test_outlier_linears.X}}))
many = np.concatenate([test_codebook_linears.X] * 2)
for double in (False, True):
    cases.append((test_codebook_linears.model(16, double=double), {{"x": many}}))
for model in (test_joined_linears.grouped(zeros="012"), test_joined_linears.codebooks(16)):
    cases.append((model, test_joined_linears.FEED))
for norm in (test_residual_norms.RMS, test_residual_norms.LAYER):
    for behind in ("y = Abs (n)", test_residual_norms.QUANTIZED):
        cases.append((test_residual_norms.model(norm, behind + test_residual_norms.OTHER), test_residual_norms.FEED))
for behind in ("y = Abs (p)", test_gates.QUANTIZED):
    cases.append((test_gates.model(test_gates.SILU, behind=behind), test_gates.FEED))
for model, feed in cases:
    expected, found = (load(each).run(feed) for each in (model, fused(model)))
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol={atol} * np.abs(array).max())
    print(*kernels(model))
"""

ROUNDING = 1e-5


def test_kernels_compute_what_torch_does() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "QCOMPILE_INTERPRET_KERNELS": "1"}
    code = CODE.format(root=str(ROOT), atol=ROUNDING)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "IntegerLinear",
        "IntegerLinear",
        "QuantizeTokens",
        "IntegerLinear",
        "GroupedLinear",
        "GroupedLinear",
        *("RMSNormQuantize", "IntegerLinear"),
        *("LayerNormQuantize", "IntegerLinear"),
        *("QuantizeTokens", "OutlierLinear"),
        "CodebookLinear",
        "CodebookLinear",
        *("GroupedLinear", "CodebookLinear"),
        *("AddRMSNorm", "RMSNormQuantize", "IntegerLinear"),
        *("AddLayerNorm", "LayerNormQuantize", "IntegerLinear"),
        *("Gated", "GatedQuantize", "IntegerLinear"),
    ]
