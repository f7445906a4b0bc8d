"""Recipe: what is done to a model, as data. The named recipes, YAML in and out, `ignore` and `targets`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from qcompile.contract import Pass
from qcompile.errors import RecipeError
from qcompile.misspelt import mend
from qcompile.plain_files import check_plain
from qcompile.recipe_named import NAMED
from qcompile.recipe_patterns import patterns_of
from qcompile.recipe_schemes import check_scheme
from qcompile.recipe_settings import convert, pass_class, settings_of
from qcompile.recipe_yaml import plain_data
from qcompile.scheme import Scheme

_NOTHING = "float"
"""The named recipe without steps."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One pass of `qcompile.passes` and its settings.

    Attributes:
        pass_name: name of the pass, which is the name of its file, e.g. "insert_qdq".
        settings: what differs from the defaults of the pass, sorted by name. A mapping is accepted; plain data is
            converted to the types of the pass's fields.

    Raises:
        RecipeError: there is no such pass, setting or value.
    """

    pass_name: str
    settings: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        fields = settings_of(self.pass_name)
        try:
            given = dict(self.settings)
        except (TypeError, ValueError) as error:
            reason = f"its settings are {self.settings!r}"
            raise RecipeError(self.pass_name, reason, "Give {setting: value}") from error
        for name in given:
            if name not in fields:
                raise RecipeError(f"{self.pass_name}.{name}", "there is no such setting", mend(name, fields))
        converted = {name: convert(fields[name], given[name], f"{self.pass_name}.{name}") for name in sorted(given)}
        for name, value in converted.items():
            if isinstance(value, Scheme):
                check_scheme(name, value, f"{self.pass_name}.{name}")
        object.__setattr__(self, "settings", tuple(converted.items()))
        self.build()

    def build(self, **bound: Any) -> Pass:
        """Return the pass. Of what `bound` offers (calibrator, ignore, targets) it gets the fields that it has."""
        cls = pass_class(self.pass_name)
        fields = {field.name for field in dataclasses.fields(cls)}
        extra = {name: value for name, value in bound.items() if name in fields}
        try:
            built: Pass = cls(**dict(self.settings), **extra)
        except (TypeError, ValueError) as error:
            raise RecipeError(self.pass_name, str(error), "Give the settings that it needs") from error
        return built

    def replace(self, name: str, value: Any) -> Step:
        """Return the step with one other setting; of a scheme, a mapping changes only the parts that it names."""
        settings = dict(self.settings)
        current = getattr(self.build(), name, None)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(current) and not isinstance(current, type):
            value = {**dataclasses.asdict(current), **value}
        return Step(self.pass_name, tuple((settings | {name: value}).items()))

    def to_data(self) -> str | dict[str, Any]:
        """Return what YAML holds: the name alone, or the name with its settings."""
        settings = {name: _plain(value) for name, value in self.settings}
        return {self.pass_name: settings} if settings else self.pass_name

    def __str__(self) -> str:
        return f"{self.pass_name}({', '.join(f'{name}={short(value)}' for name, value in self.settings)})"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is done to a model: passes in order, and which layers they leave alone.

    Attributes:
        name: shown in reports.
        steps: the passes in the order in which they run.
        ignore: layers that stay float: names, or "re:" and a regular expression that matches the whole name.
        targets: when not empty, the only layers that are quantized; same form.

    Raises:
        RecipeError: a pattern is not a valid regular expression, or an attribute has the wrong type.
    """

    name: str
    steps: tuple[Step, ...] = ()
    ignore: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise RecipeError("recipe", f"its name is {self.name!r}", "Give it a name, such as name: my-recipe")
        steps: Any = self.steps
        if isinstance(steps, str) or not isinstance(steps, Iterable):
            raise RecipeError("steps of the recipe", f"they are {steps!r}", "Write a list of passes")
        object.__setattr__(self, "steps", tuple(_step(step, index) for index, step in enumerate(steps)))
        for field in ("ignore", "targets"):
            object.__setattr__(self, field, patterns_of(field, getattr(self, field)))

    @classmethod
    def from_name(cls, name: str, **overrides: Any) -> Recipe:
        """Return a named recipe; `ignore`, `targets` and settings of its passes can be overridden.

        An override goes to every step that has a setting of that name.

        Raises:
            RecipeError: there is no recipe of this name, no step with this setting, or the value is not valid.
        """
        if not isinstance(name, str) or name not in NAMED:
            raise RecipeError(f"recipe {name!r}", "there is no such recipe", mend(name, NAMED))
        return cls.from_data({"name": name, "steps": NAMED[name][1]}).override(**overrides)

    def override(self, **overrides: Any) -> Recipe:
        """Return the recipe with other settings, `ignore` or `targets`; see `from_name`."""
        recipe = self
        for key, value in overrides.items():
            if key in ("ignore", "targets"):
                recipe = dataclasses.replace(recipe, **{key: value})
                continue
            takes = [key in settings_of(step.pass_name) for step in recipe.steps]
            if not any(takes):
                valid = {"ignore", "targets"}.union(*(settings_of(step.pass_name) for step in recipe.steps))
                raise RecipeError(f"setting {key!r}", f"no step of {self.name} has it", mend(key, sorted(valid)))
            steps = (step.replace(key, value) if take else step for step, take in zip(recipe.steps, takes, strict=True))
            recipe = dataclasses.replace(recipe, steps=tuple(steps))
        return recipe

    @classmethod
    def from_data(cls, data: Any) -> Recipe:
        """Return the recipe that plain data (of YAML, of a manifest) describes; raises RecipeError."""
        if not isinstance(data, Mapping):
            raise RecipeError("recipe", f"it is a {type(data).__name__}", "Write name: and steps:")
        valid = [field.name for field in dataclasses.fields(cls)]
        for key in data:
            if key not in valid:
                raise RecipeError(f"key {key!r} of the recipe", "there is no such key", mend(key, valid))
        steps = data.get("steps") or []
        if not isinstance(steps, list):
            raise RecipeError("steps of the recipe", f"they are a {type(steps).__name__}", "Write a list of passes")
        patterns = {key: data.get(key) or () for key in ("ignore", "targets")}
        return cls(data.get("name", ""), tuple(steps), **patterns)

    @classmethod
    def from_yaml(cls, source: str | Path) -> Recipe:
        """Return the recipe of a YAML file, or of YAML text (a string that contains a line break).

        Raises:
            RecipeError: the file cannot be read, is not YAML, has a key twice, or describes no valid recipe; or one
                without steps that is not called "float", as the named recipe that quantizes nothing.
        """
        if not isinstance(source, (str, Path)):
            raise RecipeError("recipe file", f"it is a {type(source).__name__}", "Give a path, or YAML text")
        text, subject = str(source), "recipe"
        try:
            if isinstance(source, Path) or "\n" not in source:
                subject = f"recipe file {source}"
                check_plain(Path(source))
                text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(subject, f"it cannot be read: {error}", "Give the path of a YAML file") from error
        data = plain_data(text, subject)
        try:
            recipe = cls.from_data(data)
        except RecipeError as error:
            raise RecipeError(f"{subject}: {error.subject}", error.reason, error.mend) from error
        if not recipe.steps and recipe.name != _NOTHING:
            advice = f"Write a list of passes, or use the recipe {_NOTHING}, which quantizes nothing"
            raise RecipeError(f"{subject}: steps", "there are none, and nothing would be quantized", advice)
        return recipe

    def to_data(self) -> dict[str, Any]:
        """Return plain data that `from_data` turns into an equal recipe."""
        data: dict[str, Any] = {"name": self.name, "steps": [step.to_data() for step in self.steps]}
        return data | {key: list(getattr(self, key)) for key in ("ignore", "targets") if getattr(self, key)}

    def to_yaml(self, path: str | Path | None = None) -> str:
        """Return the recipe as YAML, and write it to `path` when one is given; raises RecipeError when it cannot."""
        text: str = yaml.safe_dump(self.to_data(), sort_keys=False, allow_unicode=True, width=120)
        if path is not None:
            try:
                Path(path).write_text(text, encoding="utf-8")
            except (OSError, TypeError) as error:
                advice = "Give a file in a folder that is there"
                raise RecipeError(f"recipe file {path}", f"it cannot be written: {error}", advice) from error
        return text

    def describe(self) -> str:
        """Return one line per step, with its settings."""
        return "\n".join(map(str, self.steps)) or "(no steps)"


def named_recipes() -> dict[str, str]:
    """Return the names that `Recipe.from_name` knows, each with one sentence."""
    return {name: summary for name, (summary, _) in NAMED.items()}


def _step(data: Any, index: int) -> Step:
    """Return the step that data at a place among the steps describes; raises RecipeError that names the place."""
    try:
        if isinstance(data, (Step, str)):
            return data if isinstance(data, Step) else Step(data)
        if isinstance(data, Mapping) and len(data) == 1:
            ((name, settings),) = data.items()
            if settings is None or isinstance(settings, Mapping):
                return Step(str(name), tuple((settings or {}).items()))
    except RecipeError as error:
        raise RecipeError(f"steps[{index}].{error.subject}", error.reason, error.mend) from error
    advice = "Write the name of a pass, or its name and {setting: value}"
    raise RecipeError(f"steps[{index}]", f"{data!r} is not one pass", advice)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return list(value) if isinstance(value, tuple) else value


def short(value: Any) -> str:
    """Return a setting as one line: of a scheme, its words."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return "/".join(
            word for field in dataclasses.fields(value) if (word := _word(field, getattr(value, field.name)))
        )
    return str(value)


def _word(field: dataclasses.Field[Any], value: Any) -> str:
    """Return the word for one part of a scheme; none for a number that has its default."""
    flags = {"sym": ("asymmetric", "symmetric"), "dynamic": ("static", "dynamic")}
    if field.name in flags:
        return flags[field.name][value]
    if isinstance(value, str):
        return value
    return "" if value == field.default else f"{value} {field.name}"
