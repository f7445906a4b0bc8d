from __future__ import annotations

from qcompile.misspelt import listed, mend, nearest

RECIPES = ("w8a8-static", "w8a8-dynamic", "float")


def test_what_was_meant_is_named_and_nothing_that_only_is_least_unlike() -> None:
    assert mend("w8a8_static", RECIPES) == "The nearest is 'w8a8-static'"
    assert mend("int4", RECIPES) == "Choose from w8a8-static, w8a8-dynamic, float"
    assert mend("", RECIPES) == "Choose from w8a8-static, w8a8-dynamic, float"
    assert mend(7, ()) == "Leave it out: nothing is valid here"
    assert nearest("w8a8-statik", RECIPES, 2) == ["w8a8-static", "w8a8-dynamic"]


def test_of_many_words_the_first_are_shown() -> None:
    assert listed([f"layer{index}" for index in range(8)]).endswith("layer7")
    assert listed([f"layer{index}" for index in range(10)]).endswith("layer7 and 2 more")
