"""Schemes that mean something as weights or as activations; others are refused with the nearest."""

import pytest

from qcompile.errors import RecipeError
from qcompile.recipe import Recipe, Step, named_recipes
from qcompile.recipe_schemes import SCHEMES
from qcompile.scheme import Scheme


@pytest.mark.parametrize(
    ("setting", "scheme", "nearest"),
    [
        ("weights", {"granularity": "per_token"}, "granularity: per_channel"),
        ("weights", {"dynamic": True}, "dynamic: false"),
        ("weights", {"granularity": "per_token", "dynamic": True}, "granularity: per_channel, dynamic: false"),
        ("activations", {"granularity": "per_channel"}, "granularity: per_tensor"),
        ("activations", {"granularity": "per_token"}, "dynamic: true"),
        ("activations", {"granularity": "per_channel", "dynamic": True, "sym": True}, "granularity: per_token"),
        ("activations", {"dtype": "uint8", "granularity": "per_token", "dynamic": True}, "dtype: int8"),
        ("activations", {"dtype": "uint8", "dynamic": True}, "sym: false"),
    ],
)
def test_a_scheme_that_means_nothing_there_is_refused(setting, scheme, nearest):
    with pytest.raises(RecipeError) as caught:
        Step("insert_qdq", {setting: scheme})
    assert caught.value.subject == f"insert_qdq.{setting}"
    assert caught.value.reason.startswith(f"{setting} cannot be {{dtype: ")
    assert caught.value.mend == f"The nearest is {nearest}"


@pytest.mark.parametrize("setting", SCHEMES)
def test_the_others_are_taken_with_any_number_of_bits(setting):
    for scheme in SCHEMES[setting]:
        parts = {"dtype": scheme.dtype, "granularity": scheme.granularity, "sym": scheme.sym, "dynamic": scheme.dynamic}
        (given,) = Step("insert_qdq", {setting: parts | {"bits": 5}}).settings
        assert given == (setting, Scheme(**parts, bits=5))


def test_the_named_recipes_hold_such_schemes():
    for name in named_recipes():
        for step in Recipe.from_name(name).steps:
            for setting, value in step.settings:
                assert not isinstance(value, Scheme) or value in SCHEMES[setting]
