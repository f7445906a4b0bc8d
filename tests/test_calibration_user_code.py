"""Code of the user that fails while it makes calibration data: the error names the sample, and keeps the cause."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import qcompile
from qcompile.calibration_data import Calibration
from qcompile.errors import ArtifactError, CalibrationError

INPUTS = [ir.val("x", ir.DataType.FLOAT, ["batch", 2])]
GOOD = np.ones((1, 2), np.float32)


class OwnError(Exception):
    """Not of any kind that the library knows."""


def generator(error: BaseException, good: int = 2) -> Iterator[np.ndarray]:
    yield from [GOOD] * good
    raise error


class Reader:
    """A CalibrationDataReader that fails at its second sample."""

    def __init__(self) -> None:
        self.left = generator(KeyError("image"), 1)

    def get_next(self) -> np.ndarray:
        return next(self.left)


class Dataset(torch.utils.data.Dataset):
    """Of three samples; IndexError at the second is a mistake, and not the end."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> np.ndarray:
        return [GOOD][index]


def fails() -> Any:
    raise TypeError("no tokenizer")


def transform(sample: np.ndarray) -> np.ndarray:
    if sample[0, 0] == 7:
        raise StopIteration
    return sample


CASES = {
    "generator": (lambda: generator(ValueError("bad text")), 2, "the calibration data raised ValueError: bad text"),
    "own error": (lambda: generator(OwnError()), 2, "the calibration data raised OwnError: without a message"),
    "callable": (lambda: fails, 0, "the calibration data raised TypeError: no tokenizer"),
    "reader": (Reader, 1, "the calibration data reader raised KeyError: 'image'"),
    "dataset": (Dataset, 1, "the calibration data raised IndexError: list index out of range"),
    "loader": (
        lambda: torch.utils.data.DataLoader(Dataset(), batch_size=None),
        1,
        "the calibration data raised IndexErr",
    ),
    "transform": (
        lambda: Calibration([GOOD, GOOD * 7], transform=transform),
        1,
        "transform= of Calibration raised StopIteration: without a message",
    ),
}


@pytest.mark.parametrize(("make", "index", "reason"), CASES.values(), ids=CASES)
def test_the_sample_and_the_cause_are_named(make, index, reason):
    with pytest.raises(CalibrationError) as caught:
        list(Calibration.of(make()).read(INPUTS))
    assert caught.value.subject == f"calibration sample {index}"
    assert reason in caught.value.reason
    assert isinstance(caught.value.__cause__, Exception)
    assert not isinstance(caught.value.__cause__, CalibrationError)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), ArtifactError("a", "b", "c")])
def test_what_is_no_fault_of_the_code_passes_as_it_is(error):
    with pytest.raises(type(error)) as caught:
        list(Calibration(generator(error)).read(INPUTS))
    assert caught.value is error


@pytest.mark.parametrize(
    "data",
    [
        lambda: generator(ValueError("bad text"), 0),
        lambda: Calibration([GOOD], transform=lambda sample: sample["x"]),
    ],
    ids=["generator", "transform"],
)
def test_a_module_that_is_traced_with_the_first_sample_fails_alike(data):
    with pytest.raises(CalibrationError, match=r"calibration sample 0: .* raised (ValueError|IndexError)"):
        qcompile.compile(torch.nn.Linear(2, 2), "w8a8-static", calibration=data())


def test_a_dataset_with_a_length_ends_there():
    class Endless(Dataset):
        def __getitem__(self, index: int) -> np.ndarray:
            return GOOD * index

    assert [feed["x"][0, 0] for feed in Calibration(Endless()).read(INPUTS)] == [0, 1, 2]


def test_a_tensor_without_data_is_no_array():
    with warnings.catch_warnings(), pytest.raises(CalibrationError, match="input x, calibration sample 0: it is no ar"):
        list(Calibration([torch.ones(1, 2, device="meta")]).read(INPUTS))


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"num_calibration_samples": "3"}, "num_calibration_samples: it is '3'"),
        ({"num_calibration_samples": 1.5}, "num_calibration_samples: it is 1.5"),
        ({"num_calibration_samples": True}, "num_calibration_samples: it is True"),
        ({"num_calibration_samples": 0}, "num_calibration_samples: it is 0"),
        ({"transform": 3}, "transform= of Calibration: it is a int"),
        ({"cache": 3}, "cache= of Calibration: it is a int"),
    ],
)
def test_settings_of_a_wrong_type_are_refused_at_once(setting, reason):
    with pytest.raises(CalibrationError, match=reason):
        Calibration([GOOD], **setting)


def test_a_number_of_samples_may_be_one_of_numpy():
    assert len(list(Calibration([GOOD] * 3, np.int64(2)).read(INPUTS))) == 2


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: 5, "calibration data: the callable returned a int"),
        (lambda: None, "calibration data: the callable returned a NoneType"),
        ([None], "calibration sample 0: it is None, the inputs are x"),
        ([{"x": None}], "input x, calibration sample 0: it is no array of numbers .it holds NoneType"),
        (
            Calibration([GOOD], transform=lambda _: None),
            "sample 0: transform= of Calibration returned None of a nd",
        ),
    ],
)
def test_what_code_returned_instead_of_samples_is_said(data, reason):
    with pytest.raises(CalibrationError, match=reason):
        list(Calibration.of(data).read(INPUTS))
