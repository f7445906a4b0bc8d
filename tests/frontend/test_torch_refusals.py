"""What is of torch and no module that can be exported is refused with the true cause."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from qcompile import compile
from qcompile.errors import ModelError


def _float() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())


def _scripted() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(_float())


def _quantized() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(_float(), {torch.nn.Linear})


@pytest.mark.parametrize(
    ("make", "reason", "mend"),
    [
        (lambda: torch.nn.Linear, "is a class", "Pass an instance"),
        (lambda: _float().state_dict(), "state_dict", "Load it into the module"),
        (_scripted, "TorchScript", "Pass the module that it was scripted or traced from"),
        (_quantized, "was quantized by torch", "Pass the float module"),
        (lambda: torch.nn.Linear(4, 4, device="meta"), "weight is on the device meta", "Load the weights"),
    ],
    ids=["class", "state_dict", "scripted", "quantized", "meta"],
)
def test_what_torch_cannot_export_is_refused_with_the_cause(make: Callable[[], Any], reason: str, mend: str) -> None:
    with pytest.raises(ModelError) as caught:
        compile(make(), calibration=[torch.zeros(1, 4)])
    assert reason in caught.value.reason
    assert mend in caught.value.mend
    assert "example_inputs" not in str(caught.value)
