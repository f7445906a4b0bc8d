"""The package is imported fast, and still says what is in it."""

from __future__ import annotations

import qcompile


def test_dir_has_the_public_names_and_no_internal_module() -> None:
    assert [name for name in dir(qcompile) if not name.startswith("__")] == sorted(qcompile.__all__)
    assert "__version__" in dir(qcompile)
    assert all(callable(getattr(qcompile, name)) for name in qcompile.__all__)
