"""How large the file of a linear is, next to its bits and scales on paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qcompile.bit_allocation import effective_bits
from qcompile.passes.quantize_weights import QuantizeWeights
from qcompile.scheme import GroupScheme
from tests.passes.quantizable import parse

INPUTS, OUTPUTS = 1088, 1024


def size_over_paper(backend: Any, bits: int, sym: bool, stored: int, folder: Path) -> float:
    """Return the bytes of all files over those of as many bits as are stored, with scales and zero points."""
    weight = np.random.default_rng(0).normal(size=(INPUTS, OUTPUTS)).astype(np.float32)
    model = parse(f"g (float[n, {INPUTS}] x) => (float[n, {OUTPUTS}] y) {{ y = MatMul(x, w) }}", w=weight)
    QuantizeWeights(bits, 64, sym, "rtn", head=None)(model)
    lowered = backend.lower(model, folder, target=None)
    paper = effective_bits(GroupScheme(stored, 64, sym), INPUTS) * weight.size / 8
    return sum((folder / name).stat().st_size for name in lowered.files) / paper
