"""AutoRound on one linear: better than the nearest under the second moments, in the form of every other solver."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from qcompile.errors import MissingDependencyError
from qcompile.scheme import GroupScheme
from qcompile.solvers.grouped import NOTHING_SEEN, Evidence
from qcompile.solvers.inc import auto_round
from qcompile.solvers.rtn import rtn


def layer(inputs: int, outputs: int = 12) -> tuple[np.ndarray, Evidence]:
    generator = np.random.default_rng(0)
    mixing = np.eye(inputs) + 0.1 * generator.normal(size=(inputs, inputs))
    rows = generator.normal(size=(500, inputs)) @ mixing * np.exp(generator.normal(size=inputs))
    weight = generator.normal(size=(inputs, outputs)).astype(np.float32)
    return weight, Evidence((rows.T @ rows / len(rows)).astype(np.float32))


def test_without_second_moments_it_is_the_nearest():
    weight, _ = layer(40)
    found, expected = auto_round(weight, GroupScheme(4, 16), NOTHING_SEEN), rtn(weight, GroupScheme(4, 16))
    np.testing.assert_array_equal(found.integers, expected.integers)


def test_without_the_package_it_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "auto_round.wrapper", None)
    with pytest.raises(MissingDependencyError, match="inc"):
        auto_round(layer(40)[0], GroupScheme(4, 16), layer(40)[1])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize(("inputs", "group_size"), [(64, 16), (33, 16), (17, -1)])
def test_it_is_closer_than_the_nearest(bits: int, sym: bool, inputs: int, group_size: int):
    pytest.importorskip("auto_round", reason="needs the extra inc")
    weight, seen = layer(inputs)
    scheme = GroupScheme(bits, group_size, sym)
    found, near = auto_round(weight, scheme, seen, iters=100), rtn(weight, scheme, range_grid=0)
    assert found.integers.shape == weight.shape
    assert found.scale.shape == (scheme.groups(inputs), 12)
    assert scheme.range[0] <= found.integers.min() <= found.integers.max() <= scheme.range[1]

    def error(back: np.ndarray) -> float:
        return float(np.einsum("io,ij,jo->", back - weight, seen.gram, back - weight))

    assert error(found.weight(group_size)) < 0.9 * error(near.weight(group_size))
