"""A layer that was made bad on purpose is found, named first, and what the report suggests mends it."""

import numpy as np
import pytest
import torch
import yaml

import qcompile
from qcompile.report import Report

CHANNELS, BLOCKS, PLANTED = 64, 4, 2


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(CHANNELS)
        self.linear = torch.nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.linear(self.norm(x)))


def model_of_blocks(planted: int | None) -> torch.nn.Module:
    """Blocks; in one of them the norm makes two channels 200 times as large, which the linear behind it takes back."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(Block() for _ in range(BLOCKS))).eval()
    if planted is not None:
        with torch.no_grad():
            for parameter in (model[planted].norm.weight, model[planted].norm.bias):
                parameter[[3, 40]] *= 200
            model[planted].linear.weight[:, [3, 40]] /= 200
    return model


def compiled(planted: int | None, backend: str, ignore: tuple[str, ...] = ()) -> Report:
    recipe = qcompile.Recipe.from_name("w8a8-static")
    steps = tuple(step for step in recipe.steps if step.pass_name == "insert_qdq")
    recipe = qcompile.Recipe("no-smoothing", steps=steps, ignore=ignore)
    generator = np.random.default_rng(0)
    data = [{"input": generator.standard_normal((2, 8, CHANNELS)).astype(np.float32)} for _ in range(8)]
    return qcompile.compile(model_of_blocks(planted), recipe, backend=backend, calibration=data).report


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_planted_bad_layer_ranks_first_and_the_suggested_ignore_restores_the_outputs(backend):
    pytest.importorskip(backend)
    healthy, planted = compiled(None, backend), compiled(PLANTED, backend)
    assert healthy.culprits() == []
    assert planted.ranked_layers()[0].name == f"{PLANTED}.linear"
    assert planted.accuracy["sqnr_db"] < healthy.accuracy["sqnr_db"] - 10

    suggestion = planted.summary().partition("add to the recipe:\n")[2]
    mended = compiled(PLANTED, backend, tuple(yaml.safe_load(suggestion)["ignore"]))
    assert mended.accuracy["sqnr_db"] >= healthy.accuracy["sqnr_db"]
    assert [layer.name for layer in mended.layers if layer.action == "ignored"] == [f"{PLANTED}.linear"]
    assert mended.culprits() == []


def test_the_accumulated_error_begins_at_the_planted_layer():
    layers = {layer.name: layer for layer in compiled(PLANTED, "onnxruntime").layers}
    alone = [layers[f"{block}.linear"].sqnr_db for block in range(BLOCKS)]
    in_all = [layers[f"{block}.linear"].accumulated_db for block in range(BLOCKS)]
    assert list(layers) == [f"{block}.linear" for block in range(BLOCKS)]
    assert max(alone[PLANTED], in_all[PLANTED]) < 20 < min(alone[:PLANTED] + alone[PLANTED + 1 :] + in_all[:PLANTED])
    assert in_all[PLANTED + 1] < alone[PLANTED + 1] - 5, "it has the error of the layer before it"


def test_what_smoothing_folds_into_a_layer_is_no_error_of_it():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8)).eval()
    with torch.no_grad():
        model[0].weight[[2, 9]] *= 30  # channels that stand out behind it, until their scale is folded back
    generator = np.random.default_rng(0)
    data = [{"input": generator.standard_normal((8, 16)).astype(np.float32)} for _ in range(16)]
    report = qcompile.compile(model, "w8a8-static", calibration=data).report
    assert report.channel_scales["folded"] == 1
    assert report.layers[0].accumulated_db > 30
