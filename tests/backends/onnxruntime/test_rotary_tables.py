from __future__ import annotations

import numpy as np
import pytest

from qcompile.backends.onnxruntime.rotary_tables import RotaryTable, rotary_table
from tests.backends.onnxruntime.caches import CONSTANTS, case

ANGLES = "angles = Mul (column, frequencies)"


def table(*changes: tuple[str, str], length: int = 16) -> RotaryTable | None:
    model = case(*changes)
    return rotary_table(next(node for node in model.graph if node.op_type == "RotaryEmbedding"), length)


def test_a_row_for_each_position() -> None:
    found = table()
    assert found is not None
    assert found.positions.name == "positions"
    angles = np.arange(16, dtype=np.float32)[:, None] * CONSTANTS["frequencies"]
    np.testing.assert_allclose(found.cos, np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(found.sin, np.sin(angles), atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        # Frequencies that change with the length, as dynamic ones do; with the first position; with the size.
        [(ANGLES, "most = ReduceMax (column)\n a = Mul (column, frequencies)\n angles = Mul (a, most)")],
        [(ANGLES, "least = ReduceMin (column)\n a = Mul (column, frequencies)\n angles = Sub (a, least)")],
        [(ANGLES, "n = Cast <to = 1> (s)\n a = Mul (column, frequencies)\n angles = Mul (a, n)")],
        [(ANGLES, "other = Cast <to = 1> (padding)\n m = ReduceMax (other)\n a = Mul (column, frequencies)\n"
          " angles = Mul (a, m)")],
        [("(q, cos, sin)", "(q, table, table, positions)"),
         ("    size = Shape", "    table = Identity (frequencies2)\n    size = Shape")],
    ],
    ids=["length", "first position", "size", "another input", "indexed by the node"],
)  # fmt: skip
def test_angles_that_depend_on_more_than_the_position(changes: list[tuple[str, str]]) -> None:
    changed = changes if "frequencies2" not in str(changes) else [(old, new.replace("2)", ")")) for old, new in changes]
    assert table(*changed) is None
