"""torch.nn.EmbeddingBag becomes operators that both backends run: right for other bags, empty ones and padding."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

import qcompile
from qcompile import backends

BACKENDS = ["onnxruntime", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
RANDOM = np.random.default_rng(0)


class Bags(torch.nn.Module):
    def __init__(self, **settings) -> None:
        super().__init__()
        self.bag = torch.nn.EmbeddingBag(16, 6, padding_idx=3, **settings)

    def forward(
        self, x: torch.Tensor, offsets: torch.Tensor | None = None, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.bag(x, offsets, weights)


def rows(*shape: int) -> dict[str, np.ndarray]:
    """Indices of which the first bag has nothing but padding."""
    x = RANDOM.integers(0, 16, shape)
    x[:1] = 3
    return {"x": x}


def bags(count: int, *offsets: int) -> dict[str, np.ndarray]:
    return {**rows(count), "offsets": np.array(offsets)}


def weighted(count: int, *offsets: int) -> dict[str, np.ndarray]:
    return {**bags(count, *offsets), "weights": RANDOM.standard_normal(count).astype(np.float32)}


CASES = [
    ({"mode": "mean"}, [bags(20, 0, 1, 1, 11), bags(5, 0, 1, 5)]),
    ({"mode": "max"}, [rows(4, 7), rows(2, 9)]),
    ({"mode": "sum", "include_last_offset": True}, [weighted(9, 0, 1, 1, 4, 9), weighted(12, 0, 7, 12)]),
]


@pytest.mark.parametrize(("settings", "feeds"), CASES, ids=["mean", "max", "sum"])
def test_what_is_made_of_bags_is_right_for_others_than_the_example(settings, feeds):
    torch.manual_seed(0)
    model, auto = Bags(**settings).eval(), torch.export.Dim.AUTO
    shapes = {name: dict.fromkeys(range(array.ndim), auto) for name, array in feeds[0].items()}
    traced = qcompile.trace(model, example_inputs=feeds[0], dynamic_shapes=shapes)
    for session in [backends.get(name).open_session(traced) for name in BACKENDS]:
        for feed in feeds:
            with torch.no_grad():
                expected = model(**{name: torch.from_numpy(array) for name, array in feed.items()}).numpy()
            (actual,) = session.run(feed).values()
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


def test_a_model_with_bags_is_verified():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.EmbeddingBag(64, 32), torch.nn.Linear(32, 8)).eval()
    data = [{"input": RANDOM.integers(0, 64, (4, 7))} for _ in range(2)]
    artifact = qcompile.compile(model, "w8a8-dynamic", calibration=data, tune="none")
    assert artifact.report.agreements
    assert ("1", "quantized") in [(layer.name, layer.action) for layer in artifact.report.layers]
