import time

from qcompile.latency import BLOCK, FEWEST_ROUNDS, WARM_UP_CALLS, interleaved_medians


def test_the_median_of_each_run_is_in_milliseconds():
    medians = interleaved_medians({"slow": lambda: time.sleep(0.02), "quick": lambda: time.sleep(0.002)}, seconds=0.2)
    assert 20 <= medians["slow"] < 60
    assert 2 <= medians["quick"] < 20


def test_the_runs_take_turns_and_the_first_call_of_a_turn_does_not_count():
    calls = []

    def slow_at_first() -> None:
        if not calls or calls[-1] != "a":
            time.sleep(0.05)
        calls.append("a")

    medians = interleaved_medians({"a": slow_at_first, "b": lambda: calls.append("b")}, seconds=0.0)
    turn = ["a"] * (BLOCK + 1) + ["b"] * (BLOCK + 1)
    assert calls == ["a"] * WARM_UP_CALLS + ["b"] * WARM_UP_CALLS + turn * FEWEST_ROUNDS
    assert medians["a"] < 50


def test_progress_grows_to_the_end():
    parts = []
    interleaved_medians({"a": lambda: time.sleep(0.005)}, seconds=0.1, progress=parts.append)
    assert parts == sorted(parts)
    assert 0 < parts[0] <= parts[-1] <= 1
    assert parts[-1] == 1.0
