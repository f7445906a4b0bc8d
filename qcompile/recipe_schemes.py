"""Which schemes a recipe may give to weights and to activations."""

from __future__ import annotations

import dataclasses
import itertools

from qcompile.errors import RecipeError
from qcompile.scheme import Dtype, Granularity, Scheme

_DTYPES: tuple[Dtype, ...] = ("int8", "uint8")
_FOR_WEIGHTS: tuple[Granularity, ...] = ("per_channel", "per_tensor")

SCHEMES: dict[str, tuple[Scheme, ...]] = {
    "weights": tuple(
        Scheme(dtype, granularity, sym=sym)
        for granularity, dtype, sym in itertools.product(_FOR_WEIGHTS, _DTYPES, (True, False))
    ),
    # At run time there is one form of each: ONNX's DynamicQuantizeLinear, and the per-token function of qcompile.
    "activations": (
        Scheme("int8", "per_token", sym=True, dynamic=True),
        Scheme("uint8", "per_tensor", sym=False, dynamic=True),
        *(Scheme(dtype, "per_tensor", sym=sym) for dtype, sym in itertools.product(_DTYPES, (True, False))),
    ),
}
"""Setting of a pass -> the schemes that mean something there, whatever part of the 8 bits is used."""


def check_scheme(setting: str, scheme: Scheme, subject: str) -> None:
    """Raise RecipeError for a scheme that the setting cannot have, with what changes it into the nearest that it can.

    Args:
        setting: name of the setting; one that is not in `SCHEMES` may have any.
        scheme: what the recipe gives it.
        subject: the path of the setting in the recipe.
    """
    valid = [dataclasses.replace(each, bits=scheme.bits) for each in SCHEMES.get(setting, ())]
    if not valid or scheme in valid:
        return
    given = dataclasses.asdict(scheme)
    changes = [
        {name: value for name, value in dataclasses.asdict(each).items() if value != given[name]} for each in valid
    ]
    nearest = ", ".join(f"{name}: {_yaml(value)}" for name, value in min(changes, key=len).items())
    found = ", ".join(f"{name}: {_yaml(value)}" for name, value in given.items() if name != "bits")
    raise RecipeError(subject, f"{setting} cannot be {{{found}}}", f"The nearest is {nearest}")


def _yaml(value: str | bool) -> str:
    return str(value).lower()
