"""What users hand to `compile`, as what the compiler works with: recipe and samples."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.backends import Backend
from qcompile.calibration_data import Calibration, stored
from qcompile.calibration_sample import counted, is_array, transform_to
from qcompile.errors import CalibrationError, RecipeError, UnsupportedError
from qcompile.frontend.assets import check_generation, has_assets
from qcompile.frontend.texts import read_text, text_samples
from qcompile.recipe import Recipe
from qcompile.recipe_patterns import patterns_of
from qcompile.session import Feed
from qcompile.verify import MADE_UP, synthetic_samples

_FORMATS = ("model", "genai")
"""A model file of the runtime, or a folder that the runtime's own library for generation opens."""


def check_arguments(progress: Any, **switches: Any) -> None:
    """Raise RecipeError for a progress that cannot be called, and for a switch that is neither True nor False.

    "no" would be true, and what is trusted must not depend on that.
    """
    if progress is not None and not callable(progress):
        mend = "Give a function of the name of a stage and the part of it that is done"
        raise RecipeError("progress", f"it is a {type(progress).__name__}", mend)
    for name, value in switches.items():
        if not isinstance(value, bool | np.bool_):
            raise RecipeError(name, f"it is {value!r}", "Give True or False")


def format_of(output_format: Any, model: Any) -> str:
    """Return the format to write; None stands for "genai" where a model comes with its tokenizer, else for "model".

    Raises:
        UnsupportedError: there is no such format, or the model has nothing for it; see `check_generation`.
        ModelError: the same.
    """
    if output_format is None and not has_assets(model):
        return "model"
    output_format = "genai" if output_format is None else output_format
    if output_format not in _FORMATS:
        gguf = output_format == "gguf"
        mend = (
            "Use qcompile.export_gguf, on the command line qcompile export"
            if gguf
            else f"Use one of {', '.join(_FORMATS)}"
        )
        reason = "a GGUF file is made of the float weights, by no recipe" if gguf else "there is no such format"
        raise UnsupportedError(f"output_format {output_format!r}", reason, mend)
    if output_format == "genai":
        check_generation(model)
    return str(output_format)


def check_ahead(engine: Backend, output_format: str) -> None:
    """Raise UnsupportedError where a backend compiles nothing ahead of time, and of folders for generation.

    Raises MissingDependencyError where it does, and cannot here.
    """
    if engine.ahead_of_time is None:
        reason = f"what is compiled for {engine.name} holds no machine code: the runtime has its own"
        raise UnsupportedError("aot=True", reason, "Leave it out, or compile for triton")
    if output_format == "genai":
        reason = "a folder for generation holds the graph alone: chat prepares the steps of a decoder when it loads it"
        mend = "Leave it out, or compile with output_format='model' (--output-format model)"
        raise UnsupportedError("aot=True", reason, mend)
    engine.ahead_of_time.check()


def recipe_of(recipe: str | Path | Recipe, ignore: str | Sequence[str], targets: str | Sequence[str]) -> Recipe:
    """Return a named recipe, that of a YAML file (a Path, or a text that ends like one) or the recipe itself.

    Args:
        recipe: name, file or recipe.
        ignore: one pattern or several, besides those of the recipe.
        targets: the same.

    Raises:
        RecipeError: there is no such recipe, the file describes none, or an argument has another type.
    """
    if not isinstance(recipe, (str, Path, Recipe)):
        raise RecipeError(
            "recipe",
            f"it is a {type(recipe).__name__}",
            "Give a name, the path of a YAML file or a Recipe; Recipe.from_data makes one of a dict",
        )
    if isinstance(recipe, Recipe):
        found = recipe
    elif isinstance(recipe, Path) or recipe.endswith((".yaml", ".yml")):
        found = Recipe.from_yaml(Path(recipe))
    else:
        found = Recipe.from_name(recipe)
    return found.override(
        ignore=(*found.ignore, *patterns_of("ignore", ignore)),
        targets=(*found.targets, *patterns_of("targets", targets)),
    )


def cut_text(calibration: Calibration, model: Any) -> Calibration:
    """Return calibration data whose text, the path of a .txt file, is cut into samples; other data as it is.

    Raises as `text_samples` and `read_text`.
    """
    data = calibration.data
    if not isinstance(data, str | os.PathLike) or Path(data).suffix != ".txt":
        return calibration
    samples = text_samples(model, read_text(Path(data)), count=calibration.num_calibration_samples)
    return dataclasses.replace(calibration, data=samples)


def first_sample(calibration: Calibration, module: Any) -> tuple[Any, Calibration]:
    """Return the first calibration sample, as arguments for the forward of a torch module, and data that holds it.

    Stacked arrays are cut along axis 0 and keep it; where the samples have a batch dim of their own behind it, give
    example inputs. Arrays of float64, numpy's default, become float32 unless the module has such parameters.

    Raises:
        CalibrationError: there is no sample, or forward does not take it.
    """
    data = calibration.data
    if is_array(data):
        samples: Iterator[Any] = iter([data[:1]] if len(data) else [])
    elif isinstance(data, Mapping):
        samples = iter([{str(name): stacked[:1] for name, stacked in data.items()}])
    else:
        samples = stored(data, ())
    first = next(samples, None)
    if first is None:
        raise CalibrationError("calibration data", "it holds no sample", "Give one at least; a generator serves once")
    if not (is_array(data) or isinstance(data, Mapping | str | os.PathLike)):  # how those are cut depends on the model
        calibration = dataclasses.replace(calibration, data=itertools.chain([first], samples))
    sample = calibration.transformed(first, 0)
    _check_arguments(sample, inspect.signature(module.forward))
    doubles = any(str(each.dtype) == "torch.float64" for each in module.parameters())
    return sample if doubles else _without_doubles(sample), calibration


def _check_arguments(sample: Any, forward: inspect.Signature) -> None:
    """Raise CalibrationError when a module cannot be called with a sample."""
    mend = "Give a dict of its parameters, or one array for each in this order; transform= of Calibration makes it"
    try:
        if isinstance(sample, Mapping):
            held = f"it holds {', '.join(sample)}"
            forward.bind(**sample)
        else:
            arrays = sample if isinstance(sample, tuple | list) else (sample,)
            held = f"it has {counted(len(arrays), 'array')}"
            required = [each for each in forward.parameters.values() if each.default is each.empty]
            if len(arrays) > len(required) > 0:
                mend = f"Say which are inputs: {transform_to(len(required))}"
            forward.bind(*arrays)
    except TypeError as error:
        reason = f"{held}, and forward({', '.join(forward.parameters)}) does not take that: {error}"
        raise CalibrationError("calibration sample 0", reason, mend) from error


def _without_doubles(sample: Any) -> Any:
    """Return the sample with its arrays of float64 as float32; what is nested deeper stays."""

    def single(content: Any) -> Any:
        if not is_array(content) or str(content.dtype) not in ("float64", "torch.float64"):
            return content
        return content.astype(np.float32) if isinstance(content, np.ndarray) else content.float()

    if isinstance(sample, Mapping):
        return {name: single(content) for name, content in sample.items()}
    return tuple(map(single, sample)) if isinstance(sample, tuple | list) else single(sample)


def example_samples(model: ir.Model, example_inputs: Any) -> tuple[list[Feed], str]:
    """Return inputs to verify on, and what they are: the example inputs where they fit the model, else made up.

    What a module takes may be nested and hold flags that are no input of the model: then its tensors are the inputs,
    in order, if there are as many.
    """
    inputs = [value for value in model.graph.inputs if value.const_value is None]
    names = [str(value.name) for value in inputs]
    forms = []
    if isinstance(example_inputs, Mapping):
        arrays = {str(name): content for name, content in example_inputs.items() if is_array(content)}
        forms.append(arrays if set(arrays) == set(names) else None)
    tensors = list(_tensors(example_inputs))
    forms.append(dict(zip(names, tensors, strict=True)) if len(tensors) == len(names) else None)
    for form in forms:
        if form is None:
            continue
        try:
            return list(Calibration([form]).read(inputs)), "the example inputs"
        except CalibrationError:
            continue
    return list(synthetic_samples(model)), MADE_UP


def _tensors(nested: Any) -> Iterator[Any]:
    if is_array(nested):
        yield nested
    elif isinstance(nested, Mapping | list | tuple):
        for item in nested.values() if isinstance(nested, Mapping) else nested:
            yield from _tensors(item)
