"""The plain data of YAML that a user wrote: what a careless hand or a hostile one puts in is refused, not guessed."""

from __future__ import annotations

from typing import Any

import yaml

from qcompile.errors import RecipeError


class _Repeated(yaml.MarkedYAMLError):
    """A key is twice in one mapping: YAML forbids it, and PyYAML takes the last."""


class _Loader(yaml.SafeLoader):
    """Plain data, with no key twice in one mapping; what `<<` merges into a mapping may repeat keys of it."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping as PyYAML does, and look at its keys as they are written."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise _Repeated(problem=f"key {key.value!r} is there twice", problem_mark=key.start_mark)
                seen.add((key.tag, key.value))
        return node


def plain_data(text: str, subject: str) -> Any:
    """Return the plain data of a YAML text.

    Args:
        text: YAML.
        subject: what to call it in errors.

    Raises:
        RecipeError: it is not YAML, a mapping has a key twice, or it nests deeper than Python calls.
    """
    try:
        return yaml.load(text, _Loader)
    except _Repeated as error:
        line = f", again in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(subject, f"{error.problem}{line}", "Leave one of them out") from error
    except RecursionError as error:
        raise RecipeError(subject, "it nests too deeply", "Write it flat: a recipe needs four levels") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that there is not
        raise RecipeError(subject, f"it is not YAML: {error}", "Correct the place that is named") from error
