from __future__ import annotations

import types
from pathlib import Path

import pytest
import torch

from qcompile.backends.triton.kernels import tuning
from qcompile.backends.triton.kernels.shapes import expect_card
from qcompile.backends.triton.kernels.tuning import Tile, bucket, chosen, fastest
from qcompile.errors import UnsupportedError

TILES = (Tile("first", 32, 16), Tile("second", 64, 16))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, float]:
    """Let the interpreter pass for a card on which tiles take the milliseconds that the fixture gives."""
    times = {"first": 2.0, "second": 1.0}
    monkeypatch.setenv("QCOMPILE_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "INTERPRETED", types.SimpleNamespace(value=False))
    monkeypatch.setattr(tuning, "_KNOWN", {})
    monkeypatch.setattr(tuning, "timed", lambda tiles, _: {tile.name: times[tile.name] for tile in tiles})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    return times


def _run(_: Tile) -> None:
    raise AssertionError("nothing runs here")


def _x() -> torch.Tensor:
    # As on the card, with nothing behind it.
    return torch.empty(2, 3, device="meta")


def test_the_interpreter_takes_the_first() -> None:
    assert chosen("kernel", TILES, {"rows": 1}, torch.empty(1), _run) == TILES[0]


@pytest.mark.usefixtures("card")
def test_other_devices_take_the_first() -> None:
    assert chosen("kernel", TILES, {"rows": 1}, _x(), _run) == TILES[0]


def _on_card(rows: int = 1, idle: bool = True) -> Tile:
    return fastest("kernel", TILES, {"rows": rows}, torch.device("cuda"), _run if idle else None)


def test_the_fastest_is_taken_and_kept(card: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    assert _on_card().name == "second"
    card["first"] = 0.5
    assert _on_card().name == "second"
    monkeypatch.setattr(tuning, "_KNOWN", {})
    assert _on_card().name == "second"
    assert _on_card(rows=2).name == "first"


@pytest.mark.usefixtures("card")
def test_where_nothing_may_be_timed_it_is_the_first_until_it_is_known() -> None:
    assert _on_card(idle=False).name == "first"
    assert _on_card().name == "second"
    assert _on_card(idle=False).name == "second"


def test_times_of_another_card_are_not_read(card: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    assert _on_card().name == "second"
    monkeypatch.setattr(tuning, "_KNOWN", {})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "another card")
    card["first"] = 0.5
    assert _on_card().name == "first"


def test_rows_share_times_up_to_a_power_of_two() -> None:
    assert [bucket(count) for count in (0, 1, 2, 3, 16, 17)] == [1, 1, 2, 4, 16, 32]


def test_a_processor_without_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    expect_card(torch.empty(1))
    monkeypatch.setattr("qcompile.backends.triton.kernels.shapes.INTERPRETED", types.SimpleNamespace(value=False))
    with pytest.raises(UnsupportedError, match="TRITON_INTERPRET"):
        expect_card(torch.empty(1))
