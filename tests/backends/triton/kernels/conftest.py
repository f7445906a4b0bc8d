"""Kernels run in Triton's interpreter where there is no card; that is decided before triton is imported first."""

from __future__ import annotations

import os

import pytest
import torch

CARD = torch.cuda.is_available()
if not CARD:
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def device() -> str:
    return "cuda" if CARD else "cpu"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="no CUDA card here")
    for item in items:
        if not CARD and item.get_closest_marker("gpu"):
            item.add_marker(skip)
