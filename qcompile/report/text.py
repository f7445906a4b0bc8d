"""The report as plain text, for a terminal or a log."""

from __future__ import annotations

import io
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qcompile.bits_per_weight import ALL, QUANTIZED
from qcompile.contract import GIVE_MORE_DATA, NO_DATA
from qcompile.recipe_patterns import exactly
from qcompile.report.data import MEASURED_ON
from qcompile.report.slower import culprits_of_time
from qcompile.untouched import QUANTIZED_ALREADY

if TYPE_CHECKING:
    from qcompile.report.data import PassReport, Report
    from qcompile.session import Agreement

WIDTH = 110
SHOWN = 12

NOISE = 0.02
"""Part by which two measured times of the same thing differ: as much slower than float is not called slower."""

_COSINE = "cosine to float"
_WORDS = {"sqnr_db": "SQNR of the outputs in dB", "cosine": _COSINE}
_OUTPUTS = 4
"""Most outputs whose cosines are all told."""
_NUMERIC = ("dB alone", "dB in all", "dB gained", "seconds", "layers", "sites")


def summarise(report: Report) -> str:
    """Return what matters first: speed, size, accuracy, then the layers that lose most and those left as they were."""
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, legacy_windows=False)
    title = f"{report.model or 'model'} · {report.recipe or 'recipe'} · {report.backend or 'backend'}"
    console.print(Text(f"{title} · {report.target}" if report.target else title))
    for line in (*headlines(report), *warnings(report)):
        console.print(Text(f"  {line}"), soft_wrap=True)
    for table in (_layers(report), _kept(report), _elsewhere(report), _forms(report), _passes(report)):
        if table.row_count:
            console.print()
            console.print(table)
    for why, lines in ignore_lines(report):
        console.print(Text(f"\n{why}, add to the recipe:\n{lines}"), soft_wrap=True)
    output: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in output.splitlines()) + "\n"


def ignore_lines(report: Report) -> list[tuple[str, str]]:
    """Return (what for, lines of a recipe) that keep in float the layers below 20 dB, and those kept for a budget.

    A layer that was measured, and whose error does not reach the outputs, is not suggested.
    """
    found = []
    if report.budget is not None and report.budget.kept:
        found.append(("To keep the same layers in float without a search", _ignore(report.budget.kept, {})))
    culprits = [layer for layer in report.culprits() if layer.gain_db is None or layer.gain_db > 0][:SHOWN]
    if culprits:
        gains = {layer.name: layer.gain_db for layer in culprits if layer.gain_db is not None}
        lines = _ignore(list(dict.fromkeys(layer.name for layer in culprits)), gains)
        found.append(("To keep the layers below 20 dB in float", lines))
    return found


def _ignore(names: Sequence[str], gains: Mapping[str, float]) -> str:
    told = [f"  # alone: {gains[name]:+.1f} dB at the outputs" if name in gains else "" for name in names]
    return "\n".join(["ignore:", *(f"- {_quoted(name)}{gain}" for name, gain in zip(names, told, strict=True))])


def _quoted(name: str) -> str:
    """Return the pattern of a layer as one line of YAML."""
    plain, escaped = (
        yaml.safe_dump([exactly(name)], allow_unicode=True, width=math.inf, default_style=style)[2:-1]
        for style in (None, '"')
    )
    return plain if len(plain.splitlines()) == 1 else escaped


def _alone(report: Report, measured: Sequence[float]) -> str:
    count = len(report.quantized_layers())
    which = "each layer" if len(measured) >= count else f"{len(measured)} of {count} layers, the others without data,"
    return f"{which} alone: median {statistics.median(measured):.1f} dB, worst {min(measured):.1f} dB"


def headlines(report: Report) -> list[str]:
    """Return one line each for latency, size, accuracy, layers and channel scales, of what was measured."""
    lines = []
    unlike = bool(report.quantized_layers())  # else what came may be quantized, and no ratio says anything
    before, after = report.latency.get("float_ms"), report.latency.get("quantized_ms")
    if before and after:
        ratio = f", {before / after:.2f} times as fast as float" if unlike else ""
        lines.append(f"latency   {before:.3g} ms -> {after:.3g} ms{ratio}")
    elif report.accuracy and report.not_timed:
        lines.append(f"latency   not measured: {report.not_timed}")
    large, small = report.size.get("float_bytes"), report.size.get("quantized_bytes")
    if large and small:
        ratio = f", {large / small:.2f} times smaller" if unlike else ""
        lines.append(f"size      {human_bytes(large)} -> {human_bytes(small)}{ratio}")
    if "package_bytes" in report.size:
        lines.append(f"package   {human_bytes(report.size['package_bytes'])} of machine code besides")
    lines.extend(f"weights   {line}" for line in stored_bits(report.bits_per_weight))
    where = f", on {report.accuracy[MEASURED_ON]}" if MEASURED_ON in report.accuracy else ""
    lines.extend(f"accuracy  {name} {number(value)}{where}" for name, value in _few(measures(report)))
    if report.layers:
        actions = Counter(layer.action for layer in report.layers)
        counted = ", ".join(f"{count} {action}" for action, count in actions.most_common())
        lines.append(f"layers    {counted} of {len(report.layers)}")
        measured = [layer.sqnr_db for layer in report.layers if layer.sqnr_db is not None]
        if measured:
            lines.append(f"SQNR      {_alone(report, measured)}")
    best = report.ranked_layers()[:1]
    if best and best[0].gain_db is not None and best[0].gain_db > 0:
        gain = f"{best[0].gain_db:.1f} dB for the outputs"
        lines.append(f"ignore    would bring most for {best[0].name}: {gain}")
    if report.budget is not None:
        lines.append(f"budget    {report.budget.headline()}")
    if any(report.channel_scales.values()):
        counted = ", ".join(f"{count} {name}" for name, count in report.channel_scales.items())
        lines.append(f"scales    {counted}")
    return [*lines, *(f"verified  {line}" for line in verified(report.agreements, report.not_compared))]


def stored_bits(bits: Mapping[str, float]) -> list[str]:
    """Return one line on the bits of quantized weights, and of all; none where no weight is quantized."""
    if not bits:
        return []
    return [f"{bits[QUANTIZED]:.4g} bits each with scales and zero points, {bits[ALL]:.4g} with those left in float"]


def verified(agreements: Sequence[Agreement], not_compared: str) -> list[str]:
    """Return one line for each mode of the runtime that was compared with the reference, or why none was."""
    lines = []
    for found in agreements:
        values = f"{len(found.values)} values and the outputs" if found.values else "the outputs"
        where = f" ({found.worst})" if found.worst else ""
        besides = f"; not compared: {', '.join(found.left_out)}" if found.left_out else ""
        lines.append(f"{found.runtime}: {values} within {found.max_steps:.2g} quantization steps{where}{besides}")
    return [f"not compared with the reference of its arithmetic: {not_compared}"] if not_compared else lines


def warnings(report: Report) -> list[str]:
    """Return what the user should not miss: nothing done, slower or larger than float, layers that lose too much.

    Nothing on speed and size where no layer was quantized: then the artifact is the model that came, and differences
    are noise; but for speed where it came quantized, and the fastest of its forms was not looked for.
    """
    lines: list[str] = []
    if report.budget is not None and not report.budget.met:
        lines.append(f"warning: {report.budget.warning()}")
    if any(isinstance(value, float) and math.isnan(value) for _, value in measures(report)):
        lines.append("warning: the accuracy is unknown: outputs hold NaN or infinity, or nothing, on these inputs")
    if not report.quantized_layers():
        if any(layer.reason == QUANTIZED_ALREADY for layer in report.layers):
            lines.append("warning: the model is quantized already, so it was compiled as it is: nothing was quantized")
            lines.extend(_slower(report) if report.forms and report.not_timed else [])
        return lines
    lines.extend(_slower(report))
    large, small = report.size.get("float_bytes"), report.size.get("quantized_bytes")
    if large and small and small >= large:
        lines.append("warning: the quantized model is larger than float")
    less = [found for found in report.findings if found.reason.endswith(NO_DATA) and found.reason.startswith("runs as")]
    lines.extend(f"warning: {found.layer} {found.reason}" for found in less)
    fitted = sum(GIVE_MORE_DATA in layer.reason for layer in report.quantized_layers())
    if fitted:
        lines.append(f"warning: fitted to fewer positions than inputs, layers: {fitted}; {GIVE_MORE_DATA}")
    culprits = report.culprits()
    if culprits:
        counted = "1 quantized layer is" if len(culprits) == 1 else f"{len(culprits)} quantized layers are"
        lines.append(f"warning: {counted} below 20 dB; the worst is {culprits[0].name}")
    return lines


def _slower(report: Report) -> list[str]:
    before, after = report.latency.get("float_ms"), report.latency.get("quantized_ms")
    if not before or not after or after <= (1 + NOISE) * before:
        return []
    times = f"{after:.3g} ms where float takes {before:.3g} ms; {culprits_of_time(report)}"
    return [f"warning: the quantized model is slower than float on this runtime: {times}"]


def measures(report: Report) -> list[tuple[str, Any]]:
    """Return (what it is in words, value) of the accuracy, without what it was measured on."""
    return _flatten({name: value for name, value in report.accuracy.items() if name != MEASURED_ON})


def _few(found: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return what was measured; of the outputs of a model with many the first, and that which is furthest from float.

    The caches of a decoder are two outputs for each of its layers, behind its logits.
    """
    cosines = [pair for pair in found if pair[0].startswith(_COSINE)]
    if len(cosines) <= _OUTPUTS:
        return list(found)
    _, *others = cosines
    name, worst = min(others, key=lambda pair: -math.inf if math.isnan(pair[1]) else pair[1])
    line = (f"{_COSINE}, worst of the {len(others)} others:{name.removeprefix(_COSINE).removeprefix(',')}", worst)
    return [pair for pair in found if pair not in others] + [line]


def _flatten(measured: Mapping[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in measured.items():
        path = (*above, _WORDS.get(name, name))
        pairs.extend(_flatten(value, path) if isinstance(value, Mapping) else [(", ".join(path), value)])
    return pairs


def number(value: Any) -> str:
    """Return a number with five significant digits; anything else as text."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def decibel(ratio: float | None) -> str:
    """Return a ratio in dB with one digit behind the point; empty where it was not measured."""
    return "" if ratio is None else f"{ratio:.1f}"


def human_bytes(count: float) -> str:
    """Return a size with the unit that keeps it below 1000."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="", header_style="", box=None, pad_edge=False)
    for column in columns:
        numeric = column in _NUMERIC
        table.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    return table


def _layers(report: Report) -> Table:
    measured = [layer for layer in report.ranked_layers() if layer.action == "quantized" and layer.sqnr_db is not None]
    title = "Quantized layers" if len(measured) <= SHOWN else f"The {SHOWN} quantized layers that lose most"
    gained = ["dB gained"] if any(layer.gain_db is not None for layer in measured) else []
    table = _table(title, "dB alone", "dB in all", *gained, "operator", "layer", "note")
    for layer in measured[:SHOWN]:
        ratios = (layer.sqnr_db, layer.accumulated_db, *([layer.gain_db] if gained else []))
        table.add_row(*map(decibel, ratios), layer.operator, Text(layer.name), Text(layer.reason))
    return table


def _kept(report: Report) -> Table:
    table = _table("Layers left as they were", "layers", "action", "reason", "for example")
    kept = [layer for layer in report.layers if layer.action in ("kept", "ignored")]
    for (action, reason), count in Counter((layer.action, layer.reason) for layer in kept).most_common(SHOWN):
        example = next(layer.name for layer in kept if (layer.action, layer.reason) == (action, reason))
        table.add_row(str(count), action, Text(reason), Text(example))
    return table


def _elsewhere(report: Report) -> Table:
    """What was kept, and is no layer: the others of `findings` say how a layer was quantized."""
    table = _table("Left as they were besides", "where", "reason")
    layers = {layer.name for layer in report.layers}
    kept = [found for found in report.findings if found.action == "kept" and found.layer not in layers]
    for found in dict.fromkeys(kept[:SHOWN]):
        table.add_row(Text(found.layer), Text(found.reason))
    return table


def _forms(report: Report) -> Table:
    table = _table("Forms of lowering", "sites", "what", "form", "one takes", "for example")
    for each in report.forms:
        table.add_row(str(len(each.where)), Text(each.kind), Text(each.form), Text(each.times), Text(each.where[0]))
    return table


def _passes(report: Report) -> Table:
    idle = sum(not item.modified for item in report.passes)
    table = _table(f"Passes; {idle} more changed nothing" if idle else "Passes", "seconds", "pass", "promise and check")
    for item in report.passes:
        if item.modified:
            table.add_row(f"{item.seconds:.2f}", Text(item.title), promise(item))
    return table


def promise(item: PassReport) -> str:
    """Return the promise of a pass and how it was checked, in words."""
    if item.max_error is not None and item.in_float64 is not None and item.rounding is not None:
        return (
            f"{item.keeps}: largest error {item.in_float64:.1e} of the range in float64; the runtime differs by "
            f"{item.max_error:.1e}, and rounds by {item.rounding:.1e} without the pass"
        )
    if item.max_error is not None:
        return f"{item.keeps}: largest error {item.max_error:.1e} of the range"
    return f"{item.keeps}, not measured by itself" if item.sqnr_db is None else f"{item.keeps}: {item.sqnr_db:.1f} dB"
