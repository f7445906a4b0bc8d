"""`ignore` and `targets`: what a pattern selects, and what is said of one that selects nothing."""

import pytest

from qcompile.errors import RecipeError
from qcompile.recipe_patterns import check_patterns, selects


@pytest.mark.parametrize(
    ("patterns", "selected"),
    [
        (["encoder.0.fc"], True),
        (["node_7"], True),
        (["encoder.0"], False),
        (["re:encoder.0"], False),
        (["re:encoder.0.*"], True),
        (["re:.*fc"], True),
        (["re:fc"], False),
        (["encoder.0.*"], False),
        ([], False),
        (["nothing", "re:node_[0-9]"], True),
    ],
)
def test_a_pattern_selects_whole_names(patterns, selected):
    assert selects(patterns, ("encoder.0.fc", "node_7")) is selected


def test_a_pattern_that_selects_nothing_is_refused_with_the_nearest_layer():
    layers = [("encoder.0.fc", "node_1"), ("encoder.1.fc", "node_2")]
    check_patterns("ignore", ["encoder.1.fc", "re:node_.*"], layers)
    with pytest.raises(
        RecipeError, match=r"ignore 'encodr.1.fc': no layer has this name. The nearest is 'encoder.1.fc'"
    ):
        check_patterns("ignore", ["encoder.0.fc", "encodr.1.fc"], layers)


def test_a_regular_expression_that_matches_nothing_is_refused_with_layers():
    layers = [(f"encoder.{index}.fc", f"node_{index}") for index in range(9)]
    with pytest.raises(RecipeError) as caught:
        check_patterns("targets", ["re:encoder.3"], layers)
    assert caught.value.subject == "targets 're:encoder.3'"
    assert caught.value.reason == "the pattern matches the whole name of no layer, of 9"
    shown = caught.value.mend.removeprefix("The nearest are ").split(", ")
    assert shown[0] == "encoder.3.fc"
    assert len(shown) == 5
    with pytest.raises(RecipeError, match=r"of 9\. Choose from encoder.0.fc, node_0, .* and 10 more"):
        check_patterns("ignore", ["re:zzz"], layers)
    with pytest.raises(RecipeError, match=r"of 0\. Leave it out"):
        check_patterns("ignore", ["re:zzz"], [])
