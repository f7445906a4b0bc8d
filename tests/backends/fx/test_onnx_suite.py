"""ONNX's own suite: every case passes, or its operator is refused by name; not one value is wrong."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.backend.test.case.test_case import TestCase as Case
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

from qcompile.backends.fx import OnnxBackend
from qcompile.errors import UnsupportedOperator

PASSED = {"node": 1821, "simple": 15, "pytorch-operator": 35, "pytorch-converted": 82}
NOISE = ("test_dft_inverse", "test_dft_inverse_opset19")
"""What is expected holds the rounding errors of numpy's transform in float32 where the exact result is 0."""
NEVER = {  # no tensors of texts or images in torch, no gradients in a graph, nothing that draws or trains
    *("ImageDecoder", "StringConcat", "StringNormalizer", "StringSplit", "RegexFullMatch", "TfIdfVectorizer"),
    *("Bernoulli", "RandomUniformLike", "Dropout", "Cast", "CastLike", "Constant", "input"),
    *("Adagrad", "Adam", "Momentum", "Gradient"),
    *("ArrayFeatureExtractor", "Binarizer", "LabelEncoder", "TreeEnsemble"),
}


@functools.cache
def _cases() -> dict[str, dict[str, Case]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy, over what the cases are made of
        return {kind: {case.name: case for case in load_model_tests(kind=kind)} for kind in PASSED}


def _data(case: Case, model: onnx.ModelProto) -> Iterator[tuple[list[Any], list[Any]]]:
    for inputs, outputs in case.data_sets or ():
        yield [_array(value) for value in inputs], [_array(value) for value in outputs]
    runner = Runner.__new__(Runner)
    for folder in sorted(Path(case.model_dir or "").glob("test_data_set*")) if case.model_dir else ():
        sides: list[list[Any]] = []
        for side, values in (("input", model.graph.input), ("output", model.graph.output)):
            sides.append([])
            for index in range(len(list(folder.glob(f"{side}_*.pb")))):
                runner._load_proto(str(folder / f"{side}_{index}.pb"), sides[-1], values[index].type)
        yield sides[0], sides[1]


def _array(value: Any) -> Any:
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _compare(case: Case, expected: Any, made: Any) -> None:
    """As the suite's runner does; it takes the tensors of a sequence for sequences."""
    if isinstance(expected, (list, tuple)):
        assert len(expected) == len(made)
        for one, other in zip(expected, made, strict=True):
            _compare(case, one, other)
    else:
        noise = 1e-6 * np.abs(expected).max() if case.name in NOISE else 0.0
        Runner.assert_similar_outputs([expected], [made], case.rtol, max(case.atol, noise))


@functools.cache
def _outcome(kind: str, name: str) -> str:
    """Empty where the case passes, else what is not supported; a wrong value is an AssertionError."""
    case = _cases()[kind][name]
    model = case.model if case.model is not None else onnx.load(Path(case.model_dir or "") / "model.onnx")
    try:
        prepared = OnnxBackend.prepare(model)
        for inputs, expected in _data(case, model):
            _compare(case, expected, list(prepared.run(inputs)))
    except UnsupportedOperator as error:
        return error.subject
    return ""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, cases in _cases().items() for name in cases])
def test_case_passes_or_names_its_operator(kind: str, name: str) -> None:
    refused = _outcome(kind, name)
    assert not refused or refused.split(" of ")[0].split()[-1].rpartition(":")[2] in NEVER, refused


@pytest.mark.parametrize("kind", PASSED)
def test_as_many_pass_as_did(kind: str) -> None:
    refused = Counter(_outcome(kind, name) for name in _cases()[kind])
    assert refused[""] >= PASSED[kind], refused
