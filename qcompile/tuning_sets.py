"""Which sets of layers may stay float, and which does: decisions on measured times. Pure functions of numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from qcompile.tuning_groups import Group
from qcompile.tuning_times import INTEGER, MARGIN, faster

ALIKE = 0.02
"""Part of the fastest candidate's time by which another may be slower and be taken for the fewer layers it leaves."""


@dataclasses.dataclass(frozen=True)
class Times:
    """How long the layers of one name take, all together, in milliseconds.

    Attributes:
        forms: form -> milliseconds; of every form, whatever group has it.
        shape: of what the first of them reads.
    """

    forms: Mapping[str, float]
    shape: tuple[int, ...]

    @property
    def float_ms(self) -> float:
        """What the fastest float form takes."""
        return min(ms for form, ms in self.forms.items() if form != INTEGER)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Layers that might stay float.

    Attributes:
        form: in which they were measured.
        layers: name -> its times where it is faster so by itself, None where only the model is.
    """

    form: str
    layers: Mapping[str, Times | None]


def named_times(grouped: Sequence[tuple[str, Group]], times: Mapping[Group, Mapping[str, float]]) -> dict[str, Times]:
    """Return name of a layer -> its times, the sum where several layers have one name; not of what was not measured.

    A layer that neither reads nor writes integers of its neighbours takes as long among float ones as next to them.
    """
    named: dict[str, list[Group]] = {}
    for name, group in grouped:
        named.setdefault(name, []).append(group)
    found = {}
    for name, groups in named.items():
        if all(group in times for group in groups):
            forms = {
                form: sum(times[group].get(form, times[group]["float"]) for group in groups)
                for form in (INTEGER, "float", "float alone")
            }
            found[name] = Times(forms, groups[0].x)
    return found


def promising(measured: Mapping[str, Times], every: Sequence[str], run_ms: float) -> dict[str, Candidate]:
    """Return the sets to try on the whole model: nothing where all of them win less than noise.

    All in float is tried, too, where integers win in the layers less than what is noise of the float model: quantizing
    one linear may cost more around it, in fusions that the runtime then leaves out.

    Args:
        measured: name -> times, of the layers that were measured.
        every: names of all layers that would be quantized.
        run_ms: how long the float model takes, in milliseconds.
    """
    total = sum(times.forms[INTEGER] for times in measured.values())
    found: dict[str, Candidate] = {}
    for form in ("float", "float alone"):
        slower: dict[str, Times | None] = {name: each for name, each in measured.items() if faster(each.forms, form)}
        gain = sum(each.forms[INTEGER] - each.forms[form] for each in slower.values() if each is not None)
        if gain > MARGIN * total and all(slower.keys() != other.layers.keys() for other in found.values()):
            found[form] = Candidate(form, slower)
    # Of a model in which some layers were not measured nobody knows what integers win.
    limit = 0.0 if found else MARGIN * run_ms if measured.keys() == set(every) else float("-inf")
    if sum(times.forms["float alone"] for times in measured.values()) - total < limit:
        slower = {name: times for each in found.values() for name, times in each.layers.items()}
        if slower.keys() != set(every):
            found["all float"] = Candidate("float alone", {name: slower.get(name) for name in every})
    return found


def picked(candidates: Mapping[str, Candidate], times: Mapping[str, float]) -> str:
    """Return the name of the candidate to take; INTEGER where none makes the whole model faster by more than noise.

    Of those about as fast as the fastest it is the one that leaves the fewest layers float.

    Args:
        candidates: name -> layers that would stay float.
        times: of the whole model, in milliseconds: of each candidate and of INTEGER.
    """
    able = [name for name in candidates if name in times and faster(times, name)]
    if not able:
        return INTEGER
    limit = (1 + ALIKE) * min(times[name] for name in able)
    return min((name for name in able if times[name] <= limit), key=lambda name: len(candidates[name].layers))


def reasons(candidate: Candidate, float_ms: float, integer_ms: float, where: str) -> dict[str, str]:
    """Return layer -> why it stays float: its own times where it is faster so by itself, else those of the model.

    Args:
        candidate: the layers.
        float_ms: what the model takes with these layers in float.
        integer_ms: what it takes with all layers quantized.
        where: the processor.
    """
    whole = f"the model is faster in float here: {float_ms:.2g} ms against {integer_ms:.2g} ms on {where}"
    found = {}
    for name, own in candidate.layers.items():
        if own is None:
            found[name] = whole
        else:
            ours, theirs = own.forms[candidate.form], own.forms[INTEGER]
            shape = f"at {list(own.shape)} on {where}"
            found[name] = f"float is faster here: {ours:.2g} ms against {theirs:.2g} ms {shape}"
    return found
