"""Writes the nodes of activation observers into a graph; the pass is `passes.observe_channels.ObserveChannels`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from qcompile.calibration_masks import PaddingMask, mask_axes, position_dims
from qcompile.calibration_observation import Statistic, output_name
from qcompile.calibration_rows import GOLDEN_RATIO

_FLOAT, _INT64, _BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL


class ObserverWriter:
    """Appends the observers of values, one group of equal positions at a time.

    Attributes:
        graph: the graph that is appended to.
        masks: padding mask -> its graph input.
        rows: most rows of a value that one run returns.
    """

    def __init__(self, graph: ir.Graph, masks: Mapping[PaddingMask, ir.Value], rows: int) -> None:
        self.graph = graph
        self.rows = rows
        self._tape = ir.tape.Tape(graph)
        self._op = self._tape.op
        self._opset = graph.opset_imports.get("", 1)
        self._constants: dict[tuple[str, ir.DataType], ir.Value] = {}
        self.masks = {graph_input: self._holds_data(mask, graph_input) for mask, graph_input in masks.items()}

    def row_of(self, table: ir.Value, index: int) -> list[ir.Value]:
        """Return the three scalars of one row of a [rows, 3] table."""
        return [self._op("GatherND", [table, self._integers([index, column])]) for column in range(3)]

    def observe(
        self,
        observed: Mapping[str, tuple[ir.Value, int]],
        count: str,
        wanted: Sequence[ir.Value],
        gram: Collection[str],
    ) -> None:
        """Add the outputs of values that have the same positions.

        Args:
            observed: name -> (value, channel axis).
            count: name of the output for the number of valid positions.
            wanted: density, carry and phase of the rows, float32 scalars (see `calibration_rows`).
            gram: names of the values whose sum of x xT is wanted.
        """
        first, axis = next(iter(observed.values()))
        valid = self._valid_positions(first, axis)
        picked: ir.Value | None = None
        for name, (value, axis) in observed.items():
            x = self._flat(value, axis)
            if valid is not None:
                x = self._op("Gather", [x, valid], {"axis": 0})
            if picked is None:
                length = self._op("Reshape", [self._size_of(x, 0), self._integers([])])
                self._add_output(count, "Identity", [length], {}, [], _INT64)
                picked = self._picked(length, *wanted)
            self._add_statistics(name, x, picked, _channels(value, axis), name in gram)

    def _add_statistics(self, name: str, x: ir.Value, picked: ir.Value, channels: int | None, gram: bool) -> None:
        def add(statistic: Statistic, op_type: str, inputs: list[ir.Value], shape: list[int | None]) -> None:
            attributes = {"axis": 0} if op_type == "Gather" else {}
            self._add_output(output_name(name, statistic), op_type, inputs, attributes, shape, _FLOAT)

        self._add_reduction(output_name(name, "minimum"), "ReduceMin", x, channels, takes_axes_since=18)
        self._add_reduction(output_name(name, "maximum"), "ReduceMax", x, channels, takes_axes_since=18)
        self._add_reduction(output_name(name, "sum"), "ReduceSum", x, channels, takes_axes_since=13)
        add("rows", "Gather", [x, picked], [None, channels])
        if gram:
            add("gram", "MatMul", [self._op("Transpose", [x], {"perm": [1, 0]}), x], [channels, channels])

    def _add_reduction(self, name: str, op_type: str, x: ir.Value, channels: int | None, takes_axes_since: int) -> None:
        attributes: dict[str, int | list[int]] = {"keepdims": 0}
        inputs = [x]
        if self._opset >= takes_axes_since:
            inputs.append(self._integers([0]))
        else:
            attributes["axes"] = [0]
        self._add_output(name, op_type, inputs, attributes, [channels], _FLOAT)

    def _flat(self, value: ir.Value, axis: int) -> ir.Value:
        """Return the value as float32 [positions, channels]."""
        rank = None if value.shape is None else len(value.shape)
        x = self._cast(value, _FLOAT)
        channels = _channels(value, axis)
        if channels is not None:
            shape = self._integers([-1, channels])
        else:
            shape = self._op("Concat", [self._integers([-1]), self._size_of(x, axis)], {"axis": 0})
        if rank is not None and axis % rank != rank - 1:
            others = [index for index in range(rank) if index != axis % rank]
            x = self._op("Transpose", [x], {"perm": [*others, axis % rank]})
        return x if rank == 2 else self._op("Reshape", [x, shape])

    def _holds_data(self, mask: PaddingMask, graph_input: ir.Value) -> ir.Value:
        """Return the mask as bool, True where there is no padding."""
        as_bool = self._cast(graph_input, _BOOL)
        return as_bool if mask.valid else self._op("Not", [as_bool])

    def _valid_positions(self, value: ir.Value, axis: int) -> ir.Value | None:
        """Return the positions of the flattened value that hold data, int64, or None when all of them do."""
        dims = position_dims(value, axis)
        if dims is None or not self.masks:
            return None
        for graph_input, mask in self.masks.items():
            axes = mask_axes(dims, graph_input)
            if axes is not None:
                return self._true_positions(self._spread(mask, axes, value, axis, len(dims)))
        if len(dims) > 2 or all(isinstance(dim, int) for dim in dims):
            return None
        return self._true_positions(self._fitting_mask(self._position_shape(value, axis, len(dims)), len(dims)))

    def _true_positions(self, mask: ir.Value) -> ir.Value:
        return self._vector(self._op("NonZero", [self._vector(mask)]))

    def _position_shape(self, value: ir.Value, axis: int, rank: int) -> ir.Value:
        """Return the shape of the value without its channel axis; `rank` is the number of dims that are left."""
        others = [index for index in range(rank + 1) if index != axis % (rank + 1)]
        return self._op("Gather", [self._op("Shape", [value]), self._integers(others)])

    def _spread(self, mask: ir.Value, axes: tuple[int, int], value: ir.Value, axis: int, rank: int) -> ir.Value:
        """Return the mask broadcast to all positions of the value; `axes` are where its dims are among them."""
        if axes[0] > axes[1]:
            mask, axes = self._op("Transpose", [mask], {"perm": [1, 0]}), (axes[1], axes[0])
        if rank == 2:
            return mask
        parts = [self._integers([1])] * rank
        for place, position_axis in enumerate(axes):
            parts[position_axis] = self._size_of(mask, place)
        aligned = self._op("Reshape", [mask, self._op("Concat", parts, {"axis": 0})])
        return self._op("Expand", [aligned, self._position_shape(value, axis, rank)])

    def _fitting_mask(self, shape: ir.Value, rank: int) -> ir.Value:
        """Return the first mask whose dims turn out to be those of the value, or all True; flat, one per position.

        All masks and the True ones lie behind each other; the piece that starts at the right place is cut out.
        """
        positions = self._vector(self._op("ReduceProd", [shape], {"keepdims": 0}))
        pieces, starts, fits = [], [self._integers([0])], []
        for mask in self.masks.values():
            pieces.append(self._vector(mask))
            length = self._size_of(pieces[-1], 0)
            starts.append(self._op("Add", [starts[-1], length]))
            same = [shape, self._op("Shape", [mask])] if rank == 2 else [positions, length]
            equal_dims = self._cast(self._op("Equal", same), _INT64)
            fits.append(self._cast(self._op("ReduceMin", [equal_dims], {"keepdims": 1}), _BOOL))
        true = self._cast(self._integers([1]), _BOOL)
        pieces.append(self._op("Expand", [true, positions]))
        start = starts.pop()
        for begin, fit in reversed(list(zip(starts, fits, strict=True))):
            start = self._op("Where", [fit, begin, start])
        end = self._op("Add", [start, positions])
        return self._op("Slice", [self._op("Concat", pieces, {"axis": 0}), start, end])

    def _picked(self, count: ir.Value, density: ir.Value, carry: ir.Value, phase: ir.Value) -> ir.Value:
        """Return the indices of the rows to return, int64: floor(count * density + carry) of `count`, at most `rows`.

        They are `calibration_rows.stratified`, written as operators.
        """
        length = self._cast(count, _FLOAT)
        rows = self._op("Floor", [self._op("Add", [self._op("Mul", [length, density]), carry])])
        rows = self._op("Min", [rows, length, self._real(self.rows)])
        divisor = self._cast(self._op("Max", [rows, self._real(1.0)]), _INT64)
        part = self._op("Range", [self._integer(0), self._cast(rows, _INT64), self._integer(1)])
        begin = self._op("Div", [self._op("Mul", [part, count]), divisor])
        end = self._op("Div", [self._op("Mul", [self._op("Add", [part, self._integer(1)]), count]), divisor])
        width = self._cast(self._op("Sub", [end, begin]), _FLOAT)
        step = self._op("Add", [self._op("Mul", [self._cast(part, _FLOAT), self._real(GOLDEN_RATIO)]), phase])
        place = self._op("Floor", [self._op("Mul", [self._op("Sub", [step, self._op("Floor", [step])]), width])])
        inside = self._op("Min", [place, self._op("Sub", [width, self._real(1.0)])])
        return self._op("Add", [begin, self._cast(inside, _INT64)])

    def _vector(self, value: ir.Value) -> ir.Value:
        return self._op("Reshape", [value, self._integers([-1])])

    def _size_of(self, value: ir.Value, axis: int) -> ir.Value:
        return self._op("Gather", [self._op("Shape", [value]), self._integers([axis])])

    def _add_output(
        self,
        name: str,
        op_type: str,
        inputs: list[ir.Value],
        attributes: Mapping[str, int | list[int]],
        shape: list[int | None],
        dtype: ir.DataType,
    ) -> None:
        output = ir.val(name, dtype, shape)
        self.graph.outputs.append(self._op(op_type, inputs, attributes, output=output))

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        return value if value.dtype == dtype else self._op("Cast", [value], {"to": dtype.value})

    def _integers(self, content: list[int]) -> ir.Value:
        return self._constant(content, _INT64)

    def _integer(self, content: int) -> ir.Value:
        return self._constant(content, _INT64)

    def _real(self, content: float) -> ir.Value:
        return self._constant(content, _FLOAT)

    def _constant(self, content: float | list[int], dtype: ir.DataType) -> ir.Value:
        key = (str(content), dtype)
        if key not in self._constants:
            name = f"qcompile.observe/constant/{len(self._constants)}"
            self._constants[key] = self._tape.initializer(ir.tensor(content, dtype, name=name), name)
        return self._constants[key]


def _channels(value: ir.Value, axis: int) -> int | None:
    dim = None if value.shape is None else value.shape[axis]
    return dim if isinstance(dim, int) else None
