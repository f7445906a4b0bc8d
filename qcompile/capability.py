"""Can a backend run what a recipe asks for? Answered before any work is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from qcompile import processor
from qcompile.backends import Backend, Capability, Operator
from qcompile.contract import Pass
from qcompile.errors import CalibrationError, NothingMatchedError, UnsupportedError
from qcompile.frontend.huggingface import is_folder
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.passes.keep_weights import KeepWeights
from qcompile.passes.quantize_attention import QuantizeAttention
from qcompile.passes.quantize_caches import QuantizeCaches
from qcompile.passes.quantize_codebooks import QuantizeCodebooks
from qcompile.passes.quantize_embeddings import QuantizeEmbeddings
from qcompile.passes.quantize_weights import QuantizeWeights
from qcompile.recipe import Recipe, named_recipes, short
from qcompile.scheme import GroupScheme, Scheme

SATURATING_TARGETS = ("avx2",)
"""Processors whose products of 8-bit pairs saturate in 16 bits: weights of 7 bits cannot (255 * 63 * 2 < 2**15).

Activations have no such bound: one beyond the calibrated range takes all 8 bits, so products of two stay float.
"""

_LAYERS: tuple[Operator, ...] = ("Linear", "Conv", "ConvTranspose")
_CHANNELS = Scheme("int8", "per_channel")


def quantizers(recipe: Recipe) -> list[InsertQdq]:
    """Return the passes of the recipe that quantize layers."""
    built = (step.build() for step in recipe.steps)
    return [item for item in built if isinstance(item, InsertQdq)]


def check_data(recipe: Recipe, calibration: object) -> None:
    """Raise CalibrationError when a recipe asks for what only calibration data gives, and there is none.

    That is static activations, and a pass that cannot run without statistics and does not decide by them whether to
    run: smoothing by a given alpha.
    """
    if calibration is not None:
        return
    steps = [step.build() for step in recipe.steps]
    schemes = [wanted.activations for built in steps for wanted in _wanted(built)]
    if any(scheme is not None and not scheme.dynamic for scheme in schemes):
        reason = "the scales of static activations come from calibration data, and there is none"
        mend = "Give calibration data, or use a dynamic recipe such as w8a8-dynamic"
        raise CalibrationError(f"recipe {recipe.name}", reason, mend)
    for step, built in zip(recipe.steps, steps, strict=True):
        if built.without_calibration() is None and not built.may_match_nothing:
            reason = f"{step.pass_name} works from calibration data, and there is none"
            mend = f"Give calibration data, or leave {step.pass_name} out of the recipe"
            raise CalibrationError(f"recipe {recipe.name}", reason, mend)


def check_source(recipe: Recipe, model: object) -> None:
    """Raise NothingMatchedError where a recipe keeps weights that came quantized, and the model has floats alone.

    That is known of folders of Hugging Face: weights of other types are refused there.
    """
    if is_folder(model) and any(isinstance(step.build(), KeepWeights) for step in recipe.steps):
        reason = f"it looks for {KeepWeights.looks_for}, and the weights of a folder of Hugging Face are floats"
        mend = "Use w4a16-rtn, which quantizes any weights, or give a GGUF file with blocks of integers"
        raise NothingMatchedError(f"recipe {recipe.name}", reason, mend)


def for_target(recipe: Recipe, targets: Collection[str], target: str | None) -> Recipe:
    """Return the recipe for a processor: where products saturate, 7 bits for weights, uint8 for static activations.

    Kernels without VNNI multiply uint8 by int8. Of int8 activations they add 128, and oneDNN then halves the weights
    of convolutions for fear of saturation, whose last bit is lost (4 steps of 8 bits, measured with OpenVINO 2026.4).

    Args:
        recipe: what is done on any processor.
        targets: the processors that are known, the backend's `targets`.
        target: one of them, or None.

    Raises:
        UnsupportedError: the target is not known.
    """
    if target is None:
        return recipe
    if target not in targets:
        raise UnsupportedError(f"target {target!r}", "there is no such target", f"Use one of {', '.join(targets)}")
    if target not in SATURATING_TARGETS:
        return recipe
    found = quantizers(recipe)
    if found and all(item.activations.dtype == "int8" and not item.activations.dynamic for item in found):
        recipe = recipe.override(activations={"dtype": "uint8"})
    return recipe.override(weights={"bits": 7}) if found else recipe


def unverified(recipe: Recipe, target: str | None) -> str:
    """Return what the report says of an artifact that was not compared with the reference, by the user's wish.

    That would have found wrong products on this processor where it has no VNNI, and neither `target` nor the recipe
    leaves them room.

    Args:
        recipe: for the target, see `for_target`.
        target: processor that was compiled for, or None: one like this.
    """
    eight_bits = any(item.weights.bits == 8 for item in quantizers(recipe))
    if target is not None or not eight_bits or not processor.runs_target("avx2"):
        return "verify=False"
    return 'verify=False; 8-bit products saturate on this processor, which has no VNNI: compile with target="avx2"'


def integer_operators(recipe: Recipe, backend: Backend, target: str | None) -> frozenset[str]:
    """Return the operators that the backend computes in integers, or stores in 8 bits, as the recipe asks.

    Where 8-bit products saturate, those of two activations are not among them.
    """
    rows = [row for step in recipe.steps for row in _supported(step.build(), backend)]
    return frozenset(row.operator for row in rows if row.weights is not None or target not in SATURATING_TARGETS)


def wanted_operators(recipe: Recipe) -> frozenset[str]:
    """Return the operators that the recipe quantizes, whatever a backend makes of them."""
    return frozenset(wanted.operator for step in recipe.steps for wanted in _wanted(step.build()))


def check_recipe(recipe: Recipe, backend: Backend) -> None:
    """Raise UnsupportedError, naming the nearest recipes, when the backend has no operator that the recipe quantizes.

    That is asked of each pass that must quantize something, and of all passes together. What a backend has no integer
    kernel for besides stays float, and the report says so: attention, where linears are quantized.
    """
    quantizing = [built for step in recipe.steps if _wanted(built := step.build())]
    able = [built for built in quantizing if _supported(built, backend)]
    if (able or not quantizing) and all(built in able for built in quantizing if not built.may_match_nothing):
        return
    others = [name for name in named_recipes() if integer_operators(Recipe.from_name(name), backend, None)]
    unable = [
        (step.pass_name, built) for step in recipe.steps if (built := step.build()) in quantizing and built not in able
    ]
    raise UnsupportedError(
        f"recipe {recipe.name}",
        f"{backend.name} computes none of its operators in integers{_schemes(*unable[0], backend)}",
        f"Use {' or '.join(others[:2])}",
    )


def _schemes(pass_name: str, built: Pass, backend: Backend) -> str:
    """Say which schemes of a pass are the cause, and the nearest that the backend has for the same operator."""
    pairs = [
        (wanted, row) for wanted in _wanted(built) for row in backend.capabilities if row.operator == wanted.operator
    ]
    told = [_unlike(wanted, row) for wanted, row in pairs]
    if not told:
        return ""
    words = [f"{pass_name}.{name} is {short(mine)}, it has {short(other)}" for name, mine, other in min(told, key=len)]
    return f": {'; '.join(words)}"


def _unlike(wanted: Capability, row: Capability) -> list[tuple[str, object, object]]:
    sides = [("activations", wanted.activations, row.activations), ("weights", wanted.weights, row.weights)]
    return [(name, mine, other) for name, mine, other in sides if not _same(mine, other)]


def _supported(built: Pass, backend: Backend) -> list[Capability]:
    return [
        wanted
        for wanted in _wanted(built)
        if any(
            row.operator == wanted.operator
            and _same(row.activations, wanted.activations)
            and _same(row.weights, wanted.weights)
            for row in backend.capabilities
        )
    ]


def _wanted(built: Pass) -> list[Capability]:
    """Return what a pass quantizes, as rows of the table that a backend needs for it; none: it quantizes nothing."""
    if isinstance(built, InsertQdq):
        operators = _LAYERS[:1] if built.activations.dynamic else _LAYERS  # see `layers.refusal`
        return [Capability(operator, built.weights, built.activations) for operator in operators]
    if isinstance(built, QuantizeAttention):
        return [Capability("Attention", None, built.activations)]
    if isinstance(built, QuantizeCaches):
        return [Capability("Cache", _CHANNELS, None)]
    if isinstance(built, QuantizeCodebooks):
        return [Capability("Linear", built.scheme, None)]
    if isinstance(built, QuantizeWeights):
        return [Capability("Linear", built.schemes[0], None)]
    if isinstance(built, KeepWeights):
        return [Capability("Linear", GroupScheme(), None), Capability("Embedding", _CHANNELS, None)]
    if isinstance(built, QuantizeEmbeddings):
        return [Capability("Embedding", _CHANNELS, None)]
    return []


def _same(row: Scheme | GroupScheme | None, wanted: Scheme | GroupScheme | None) -> bool:
    """True for equal schemes, whatever part of the 8 bits is used, and for two of groups."""
    if not isinstance(row, Scheme) or not isinstance(wanted, Scheme):
        return type(row) is type(wanted)
    return dataclasses.replace(row, bits=wanted.bits) == wanted
