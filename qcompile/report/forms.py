"""In which form the backend wrote what it can write in several."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class FormReport:
    """The form of all sites of one kind and one shape.

    Attributes:
        kind: what the nodes are, in words.
        form: in which they are written.
        where: names of the layers, one for each site.
        shapes: of what such a site reads in the run that it was measured for; () where it was not.
        ms: form -> how long one such site takes, in milliseconds of the processor on one thread; empty where it was
            not measured.
    """

    kind: str
    form: str
    where: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...] = ()
    ms: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FormReport:
        """Return what `dataclasses.asdict` made data of, and JSON lists of tuples."""
        shapes = tuple(map(tuple, data["shapes"]))
        return cls(**{**data, "where": tuple(data["where"]), "shapes": shapes})

    @property
    def times(self) -> str:
        """Each form and its time in words, the chosen one first; or that nothing was measured."""
        ordered = sorted(self.ms.items(), key=lambda item: item[0] != self.form)
        return ", ".join(f"{form} {ms:.3g} ms" for form, ms in ordered) or "not measured"
