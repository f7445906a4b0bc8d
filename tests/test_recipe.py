import dataclasses
import pickle
import subprocess
import sys

import pytest

from qcompile.errors import RecipeError
from qcompile.recipe import Recipe, Step, named_recipes
from qcompile.recipe_settings import BOUND, pass_class, settings_of
from qcompile.recipe_yaml import plain_data
from qcompile.scheme import Scheme

NAMES = [
    *["float", "w8a8-static", "w8a8-dynamic", "llm-int8", "smoothquant-o1", "smoothquant-o2", "smoothquant-o3"],
    *[
        "w4a16-rtn",
        "w4a16-hqq",
        "w4a16-awq",
        "w4a16-gptq",
        "w4a16-learned",
        "w4a16-inc",
        "nf4",
        "nf4-dq",
        "w4a8",
        "keep",
    ],
]
PER_CHANNEL = Scheme("int8", "per_channel", sym=True)
PER_TENSOR = Scheme("int8", "per_tensor", sym=True)


def settings(recipe: Recipe, pass_name: str) -> dict:
    (step,) = [step for step in recipe.steps if step.pass_name == pass_name]
    return dict(step.settings)


def test_the_named_recipes_are_those_of_the_documentation():
    assert list(named_recipes()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_named_recipe_survives_yaml_and_pickle(name, tmp_path):
    recipe = Recipe.from_name(name, ignore=["re:.*head", "é: yes"])
    text = recipe.to_yaml(tmp_path / "recipe.yaml")
    assert Recipe.from_yaml(text) == recipe
    assert Recipe.from_yaml(tmp_path / "recipe.yaml") == Recipe.from_yaml(str(tmp_path / "recipe.yaml")) == recipe
    assert Recipe.from_data(recipe.to_data()) == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert hash(Recipe.from_yaml(text)) == hash(recipe)


@pytest.mark.parametrize(
    ("name", "activations"),
    [
        ("smoothquant-o1", Scheme("int8", "per_token", sym=True, dynamic=True)),
        ("smoothquant-o2", Scheme("uint8", "per_tensor", sym=False, dynamic=True)),
        ("smoothquant-o3", Scheme("int8", "per_tensor", sym=True, dynamic=False)),
    ],
)
def test_the_levels_of_smoothquant_are_those_of_table_2_of_the_paper(name, activations):
    recipe = Recipe.from_name(name)
    smoothing, qdq = settings(recipe, "smooth_activations"), settings(recipe, "insert_qdq")
    assert smoothing["alpha"] == 0.5
    assert smoothing["weights"] == qdq["weights"] == PER_TENSOR
    assert smoothing["activations"] == qdq["activations"] == activations
    (quantizer,) = [step.build() for step in recipe.steps if step.pass_name == "insert_qdq"]
    assert (quantizer.observer, quantizer.rounding) == ("minmax", "nearest")
    assert [step.pass_name for step in recipe.steps] == [
        *["smooth_activations", "fold_scales", "insert_qdq", "quantize_attention"]
    ]
    assert settings(recipe, "quantize_attention")["activations"] == activations


@pytest.mark.parametrize(
    ("name", "activations"),
    [
        ("w8a8-static", Scheme("uint8", "per_tensor", sym=False, dynamic=False)),
        ("w8a8-dynamic", Scheme("int8", "per_token", sym=True, dynamic=True)),
    ],
)
def test_our_recipes_have_weights_per_channel_and_search_alpha(name, activations):
    recipe = Recipe.from_name(name)
    smoothing, qdq = settings(recipe, "smooth_activations"), settings(recipe, "insert_qdq")
    assert smoothing == {"alpha": "auto", "activations": activations, "weights": PER_CHANNEL}
    assert (qdq["activations"], qdq["weights"]) == (activations, PER_CHANNEL)


def test_an_override_goes_to_every_step_that_has_the_setting():
    recipe = Recipe.from_name("smoothquant-o3", weights=PER_CHANNEL, alpha=1, observer="percentile", ignore="head")
    assert settings(recipe, "smooth_activations")["weights"] == settings(recipe, "insert_qdq")["weights"] == PER_CHANNEL
    assert settings(recipe, "smooth_activations")["alpha"] == 1.0
    assert settings(recipe, "insert_qdq")["observer"] == "percentile"
    assert recipe.ignore == ("head",)
    assert recipe != Recipe.from_name("smoothquant-o3")


def test_a_mapping_overrides_only_the_parts_of_a_scheme_that_it_names():
    recipe = Recipe.from_name("w8a8-static", activations={"sym": True})
    assert settings(recipe, "insert_qdq")["activations"] == Scheme("uint8", "per_tensor", sym=True)


def test_a_step_builds_the_pass_and_binds_only_the_fields_that_it_has():
    built = Step("insert_qdq", {"observer": "mse", "weights": PER_CHANNEL}).build(ignore=("a",), nothing_like_it=3)
    assert isinstance(built, pass_class("insert_qdq"))
    assert (built.observer, built.weights) == ("mse", PER_CHANNEL)


def test_what_the_compiler_binds_is_not_a_setting():
    assert not set(BOUND) & set(settings_of("insert_qdq"))
    with pytest.raises(RecipeError, match="calibrator"):
        Step("insert_qdq", {"calibrator": None})


def test_settings_are_sorted_so_that_their_order_does_not_matter():
    one = Step("insert_qdq", {"weights": PER_CHANNEL, "observer": "mse"})
    other = Step("insert_qdq", {"observer": "mse", "weights": dataclasses.asdict(PER_CHANNEL)})
    assert one == other
    assert hash(one) == hash(other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recipe.from_name("w8a8-statik"), "recipe 'w8a8-statik'.*'w8a8-static'"),
        (lambda: Recipe.from_name("w8a8-static", alfa=0.5), "setting 'alfa'.*w8a8-static.*'alpha'"),
        (lambda: Recipe.from_name("w8a8-static", alpha="autp"), "smooth_activations.alpha: 'autp'.*'auto'"),
        (lambda: Recipe.from_name("w8a8-static", alpha=float("nan")), "smooth_activations.alpha: nan"),
        (lambda: Recipe.from_name("w8a8-static", alpha=True), "smooth_activations.alpha: True"),
        (lambda: Recipe.from_name("w8a8-static", observer="meanmax"), "insert_qdq.observer: 'meanmax'.*'minmax'"),
        (lambda: Recipe.from_name("w8a8-static", weights={"dtype": "int9"}), "weights.dtype: 'int9'.*'int8'"),
        (lambda: Recipe.from_name("w8a8-static", weights={"symm": True}), "weights.symm.*'sym'"),
        (lambda: Recipe.from_name("w8a8-static", weights={"sym": 1}), "weights.sym: 1 is a int.*bool"),
        (lambda: Recipe.from_name("w8a8-static", weights={"bits": 9}), "weights: bits must be 2 to 8, not 9"),
        (lambda: Recipe.from_name("w8a8-static", weights="int8"), "weights: 'int8' is not a Scheme"),
        (lambda: Recipe.from_name("w8a8-static", min_elements=True), "min_elements: True is a bool.*int"),
        (lambda: Recipe.from_name("float", alpha=0.5), "setting 'alpha': no step of float has it"),
        (lambda: Recipe.from_name("float", ignore=["re:("]), "re:\\(.*regular expression.*not valid"),
        (lambda: Recipe.from_name("float", targets=[3]), "targets 3: it is not a text"),
        (lambda: Step("insert_qdp"), "insert_qdp: there is no such pass.*'insert_qdq'"),
        (lambda: Step("../errors"), "../errors: there is no such pass"),
        (lambda: Step("insert_qdq", {"observr": "mse"}), "insert_qdq.observr: there is no such setting.*'observer'"),
        (lambda: Recipe(""), "name"),
        (lambda: Recipe.from_yaml("naem: x\n"), "key 'naem'.*'name'"),
        (lambda: Recipe.from_yaml("- insert_qdq\n"), "it is a list"),
        (lambda: Recipe.from_yaml("name: x\nsteps: insert_qdq\n"), "steps of the recipe.*str"),
        (lambda: Recipe.from_yaml("name: x\nsteps: [{insert_qdq: , fold_scales: }]\n"), "not one pass"),
        (lambda: Recipe.from_yaml("name: x\nsteps: [{insert_qdq: 3}]\n"), "not one pass"),
        (lambda: Recipe.from_yaml("name: [\n"), "not YAML"),
        (lambda: Recipe.from_yaml("[" * 5000 + "\n"), "recipe: it nests too deeply"),
        (lambda: Recipe.from_yaml("name: x\nsteps: [insert_qdq]\nname: y\n"), "'name' is there twice, again in line 3"),
        (lambda: Recipe.from_yaml("name: x\nsteps: [{insert_qdq: {observer: mse, observer: mse}}]\n"), "'observer' is"),
        (lambda: Recipe.from_yaml("name: x\nsteps: []\n"), "steps: there are none.*the recipe float"),
        (lambda: Recipe.from_yaml("name: x\n"), "steps: there are none"),
        (lambda: Recipe.from_yaml("name: !!python/object/apply:os.getcwd []\n"), "not YAML"),
        (lambda: Recipe.from_yaml("no/such/recipe.yaml"), "recipe file no/such/recipe.yaml"),
    ],
)
def test_what_is_not_valid_is_refused_with_the_nearest_valid_word(make, message):
    with pytest.raises(RecipeError, match=f"(?s){message}"):
        make()


@pytest.mark.parametrize(
    ("step", "subject", "reason", "mend"),
    [
        (
            "insert_qdq: {weights: {granularity: per_chanel}}",
            "insert_qdq.weights.granularity",
            "'per_chanel'",
            "per_channel",
        ),
        ("insert_qdq: {scheme: int8}", "insert_qdq.scheme", "no such setting", "Choose from activations, weights"),
        ("insert_qdq: {weights: int8}", "insert_qdq.weights", "'int8'", "dtype, granularity, sym, dynamic, bits"),
        ("insert_qdp: {observer: mse}", "insert_qdp", "no such pass", "insert_qdq"),
        ("[insert_qdq]", "", "is not one pass", "the name of a pass"),
    ],
)
def test_a_setting_in_a_file_is_named_by_its_path(step, subject, reason, mend, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\nsteps:\n- fold_scales\n- {step}\n")
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml(path)
    assert caught.value.subject == f"recipe file {path}: steps[1]" + f".{subject}" * bool(subject)
    assert reason in caught.value.reason
    assert mend in caught.value.mend


def test_the_yaml_form_of_the_documentation():
    recipe = Recipe.from_yaml(
        """
        name: mine
        steps:
          - smooth_activations: {alpha: auto}
          - fold_scales
          - insert_qdq: {activations: {dtype: uint8, granularity: per_tensor, sym: false}, observer: mse}
        ignore: ["re:.*embeddings.*"]
        """
    )
    assert recipe == Recipe(
        "mine",
        (
            Step("smooth_activations", {"alpha": "auto"}),
            Step("fold_scales"),
            Step("insert_qdq", {"activations": Scheme("uint8", sym=False), "observer": "mse"}),
        ),
        ignore=("re:.*embeddings.*",),
    )
    assert str(recipe.override(weights={"bits": 7}).steps[2]).endswith(
        "weights=int8/per_channel/symmetric/static/7 bits)"
    )
    assert recipe.describe().splitlines() == [
        "smooth_activations(alpha=auto)",
        "fold_scales()",
        "insert_qdq(activations=uint8/per_tensor/asymmetric/static, observer=mse)",
    ]


def test_importing_the_recipes_imports_no_pass():
    code = "import sys, qcompile.recipe; print([m for m in sys.modules if m.startswith('qcompile.passes.')])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_a_part_of_a_scheme_that_the_recipe_leaves_to_the_pass_keeps_the_other_parts():
    (step,) = Recipe("defaults", (Step("insert_qdq"),)).override(weights={"bits": 7}).steps
    assert step.build().weights == Scheme("int8", "per_channel", bits=7)


def test_the_recipe_that_quantizes_nothing_comes_back_from_yaml():
    recipe = Recipe.from_name("float", ignore=["a"])
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_what_is_merged_into_a_mapping_may_be_overridden_there():
    text = "- &base {observer: mse, rounding: nearest}\n- {<<: *base, observer: minmax}\n"
    assert plain_data(text, "text")[1] == {"observer": "minmax", "rounding": "nearest"}


def test_the_two_searches_of_awq_have_settings_of_their_own():
    steps = {step.pass_name: dict(step.settings) for step in Recipe.from_name("w4a16-awq").steps}
    for name, step in (("n_grid", "search_scales"), ("range_grid", "quantize_weights")):
        changed = {each.pass_name: dict(each.settings) for each in Recipe.from_name("w4a16-awq", **{name: 7}).steps}
        assert changed == {**steps, step: {**steps[step], name: 7}}
