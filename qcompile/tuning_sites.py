"""Sites that a backend can write in several forms: each as a model of its own, and the form that its times choose."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from qcompile.backends import FORM, Site
from qcompile.graph import constant, layer_name
from qcompile.report.forms import FormReport
from qcompile.tuning_times import faster

Shapes = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Timed:
    """A site and how long its forms take.

    Attributes:
        site: the nodes.
        shapes: of what it reads, see `read_values`; () where it was not measured.
        ms: form -> milliseconds; empty where it was not measured.
    """

    site: Site
    shapes: Shapes = ()
    ms: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def form(self) -> str:
        """The fastest form, or the first where no other is faster than it by more than noise."""
        first = self.site.forms[0]
        able = [form for form in self.ms if faster(self.ms, form, first)]
        return min(able, key=lambda form: self.ms[form], default=first)


def read_values(site: Site) -> list[ir.Value]:
    """Return the values that a site reads from the rest of the model, constants aside, each once."""
    inside = {value for node in site.nodes for value in node.outputs}
    read = (value for node in site.nodes for value in node.inputs if value is not None and value not in inside)
    return [value for value in dict.fromkeys(read) if constant(value) is None]


def model_of(site: Site, shapes: Shapes, form: str) -> ir.Model:
    """Return the nodes of a site as a model of their own, to be written in a form; weights are not copied.

    Two sites that take the same time make models of one `calibration_cache.fingerprint` without weights.

    Args:
        site: is not changed.
        shapes: of `read_values`, in that order.
        form: one of the site's.
    """
    graph = site.nodes[0].graph
    assert isinstance(graph, ir.Graph)
    read = dict.fromkeys(value for node in site.nodes for value in node.inputs if value is not None)
    weights = [value for value in read if value.is_initializer() and constant(value) is not None]
    view = ir.GraphView(
        read_values(site),
        _written_values(site),
        nodes=site.nodes,
        initializers=weights,
        opset_imports=graph.opset_imports,
    )
    alone = view.clone()
    for value, shape in zip(alone.inputs, shapes, strict=True):
        value.shape, value.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
    for value in alone.initializers.values():
        assert value.const_value is not None
        value.const_value = _shared(value.const_value)
    _rename(alone)
    model = ir.Model(alone, ir_version=10)
    alone[0].metadata_props[FORM] = form
    return model


def _shared(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    """Return the same numbers under a name of their own: to rename a value is to rename its tensor."""
    return ir.LazyTensor(lambda: tensor, dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()))


def _written_values(site: Site) -> list[ir.Value]:
    """Return the values that a site computes and the rest of the model reads."""
    nodes = set(site.nodes)
    return [
        value
        for node in site.nodes
        for value in node.outputs
        if value.is_graph_output() or any(reader not in nodes for reader, _ in value.uses())
    ]


def _rename(graph: ir.Graph) -> None:
    """Number all names as the nodes use them, one after the other, and forget the shapes: another run had them."""
    for index, node in enumerate(graph):
        node.name = f"node_{index}"
        for value in node.outputs:
            value.shape = None
    used = (value for node in graph for value in (*node.inputs, *node.outputs) if value is not None)
    for index, value in enumerate(dict.fromkeys(used)):
        value.name = f"value_{index}"


def write_down(timed: Sequence[Timed]) -> None:
    """Let the first node of each site say in which form it is to be written, whatever it said before."""
    for each in timed:
        each.site.nodes[0].metadata_props[FORM] = each.form


def reports(timed: Sequence[Timed]) -> list[FormReport]:
    """Return the report of the forms, one entry for all sites of the same kind, form, shapes and times."""
    alike: dict[tuple[object, ...], list[Timed]] = {}
    for each in timed:
        key = (each.site.kind, each.form, each.shapes, tuple(each.ms.items()))
        alike.setdefault(key, []).append(each)
    return [
        FormReport(
            each.site.kind,
            each.form,
            tuple(layer_name(other.site.nodes[-1]) for other in same),
            each.shapes,
            each.ms,
        )
        for same in alike.values()
        for each in same[:1]
    ]
