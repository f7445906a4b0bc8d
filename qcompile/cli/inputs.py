"""What the command line takes, as what the library takes: models, recipes, data and feeds."""

from __future__ import annotations

import dataclasses
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.calibration_data import Calibration
from qcompile.compile_requests import cut_text
from qcompile.errors import CalibrationError, InputError, ModelError, RecipeError
from qcompile.frontend.huggingface import is_folder
from qcompile.manifest import Port
from qcompile.misspelt import mend
from qcompile.plain_files import check_plain
from qcompile.recipe import Recipe, named_recipes
from qcompile.recipe_yaml import plain_data

DEFAULT_DIMENSION = 128

_MOST_NUMBERS = 2**28
"""Of all inputs of a made-up feed: as float64, in which they are made, they take 2 GiB."""


@dataclasses.dataclass(frozen=True)
class SampleFolder:
    """A folder of .npz files, one sample each, read in the order of their names; may be iterated again.

    Attributes:
        path: the folder.

    Raises:
        CalibrationError: there is no .npz file in it, or one cannot be read.
    """

    path: Path

    def __post_init__(self) -> None:
        if not any(self.path.glob("*.npz")):
            raise CalibrationError(str(self.path), "there is no .npz file in it", "Save one .npz file for each sample")

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for file in sorted(self.path.glob("*.npz")):
            yield read_sample(file)


def read_sample(file: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file by name; raises CalibrationError when it holds anything else."""
    mend = "Save it with numpy.savez, one array for each input"
    try:
        check_plain(file)
        if not zipfile.is_zipfile(file):
            raise CalibrationError(str(file), "it is no .npz file", mend)
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise CalibrationError(str(file), f"it cannot be read: {error}", mend) from error


def model_file(path: Path) -> Path:
    """Return the path of a model; raises ModelError where there is none."""
    if path.is_dir() and not is_folder(path):
        mend = "Give the path of an .onnx or .gguf file, or of a folder with config.json and safetensors"
        raise ModelError(str(path), "it is a folder without config.json", mend)
    if not path.exists():
        raise ModelError(str(path), "there is no such file", "Give the path of a model")
    return path


def calibration(
    path: Path | None, count: int | None, cache: Path | None, model: Path | None = None
) -> Calibration | None:
    """Return calibration data: an .npz file of stacked samples, a folder of them, or a .txt; None: there is none.

    Args:
        path: file or folder.
        count: most samples that are read.
        cache: folder where statistics are kept between runs.
        model: whose tokenizer reads a text.

    Raises:
        CalibrationError: there is no such file, or nothing that the other options could be about.
    """
    if path is None:
        for option, value in (("--num-calibration-samples", count), ("--calibration-cache", cache)):
            if value is not None:
                raise CalibrationError(option, "there is no calibration data", "Give it with --calibration")
        return None
    if not path.exists():
        raise CalibrationError(
            str(path),
            "there is no such file or folder",
            "Give a text file for a language model, an .npz file, or a folder of them",
        )
    if path.suffix == ".txt" and model is not None:
        return cut_text(Calibration(path, count, cache=cache), model)
    return Calibration(SampleFolder(path) if path.is_dir() else path, count, cache=cache)


def recipe(name: str, settings: Sequence[str]) -> Recipe:
    """Return the recipe of a name or YAML file, with settings of the form key=value; values are read as YAML.

    Raises:
        RecipeError: the recipe or a setting is not valid.
    """
    overrides = dict(map(_setting, settings))
    if name not in named_recipes() and (name.endswith((".yaml", ".yml")) or Path(name).is_file()):
        return Recipe.from_yaml(Path(name)).override(**overrides)
    return Recipe.from_name(name, **overrides)


def _setting(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise RecipeError(f"--set {text}", "it is not key=value", "Write it like --set alpha=0.5")
    return key.strip(), plain_data(value, f"--set {text}")


def made_up_feed(inputs: Sequence[Port], dimensions: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return a feed that fits the inputs, the same at each call: for measuring time, not accuracy.

    Free dimensions are 1 on the first axis and DEFAULT_DIMENSION on the others, unless `dimensions` gives them by
    name; integers are ones, which is a valid index, a real token and an unmasked position; floats are random.

    Raises:
        InputError: it would be too large to be made.
    """
    generator = np.random.default_rng(0)

    def size(axis: int, dimension: int | str | None) -> int:
        if isinstance(dimension, int):
            return dimension
        parts = (dimension or "").split(" + ")
        if len(parts) > 1 and dimension not in dimensions:  # the mask of a decoder, as long as its cache and new tokens
            return sum(size(axis, part) for part in parts)
        return dimensions.get(dimension or "", 1 if axis == 0 else DEFAULT_DIMENSION)

    feed = {}
    shapes = {port.name: tuple(size(axis, each) for axis, each in enumerate(port.shape or ())) for port in inputs}
    if sum(map(math.prod, shapes.values())) > _MOST_NUMBERS:
        sizes = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        reason = f"it would have more than {_MOST_NUMBERS} numbers: {sizes}"
        raise InputError("made-up feed", reason, "Give smaller sizes with --dim, or a feed with --data")
    for port in inputs:
        shape = shapes[port.name]
        dtype = np.dtype(port.dtype)
        values = generator.standard_normal(shape) if dtype.kind == "f" else np.ones(shape)
        feed[port.name] = values.astype(dtype)
    return feed


def measured_seconds(seconds: float) -> float:
    """Return how long to measure; raises RecipeError where that never ends."""
    if not math.isfinite(seconds):
        raise RecipeError(f"--seconds {seconds}", "it is no length of time", "Give a number, such as 5")
    return seconds


def dimensions(texts: Sequence[str], inputs: Sequence[Port]) -> dict[str, int]:
    """Return sizes of the free dimensions of the inputs from name=size.

    Raises:
        RecipeError: a text is not name=size, or no free dimension has this name.
    """
    known = list(dict.fromkeys(size for port in inputs for size in port.shape or () if isinstance(size, str)))
    sizes = {}
    for text in texts:
        name, _, size = text.partition("=")
        if not size.isdecimal() or not int(size):
            raise RecipeError(f"--dim {text}", "it is not name=size", "Write it like --dim sequence=128")
        if name not in known:
            reason = f"no free dimension has this name: they are {', '.join(known)}" if known else "all sizes are fixed"
            raise RecipeError(f"--dim {text}", reason, mend(name, known))
        sizes[name] = int(size)
    return sizes
