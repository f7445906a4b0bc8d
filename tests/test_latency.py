import time

from qcompile.latency import FEWEST_ROUNDS, WARM_UP_ROUNDS, interleaved_medians


def test_the_median_of_each_run_is_in_milliseconds():
    medians = interleaved_medians({"slow": lambda: time.sleep(0.02), "quick": lambda: time.sleep(0.002)}, seconds=0.2)
    assert 20 <= medians["slow"] < 60
    assert 2 <= medians["quick"] < 20


def test_the_runs_take_turns_and_the_first_rounds_do_not_count():
    calls = []

    def slow_at_first() -> None:
        calls.append("a")
        if len(calls) <= 2 * WARM_UP_ROUNDS:
            time.sleep(0.05)

    medians = interleaved_medians({"a": slow_at_first, "b": lambda: calls.append("b")}, seconds=0.0)
    assert calls == ["a", "b"] * (WARM_UP_ROUNDS + FEWEST_ROUNDS)
    assert medians["a"] < 50


def test_progress_grows_to_the_end():
    parts = []
    interleaved_medians({"a": lambda: time.sleep(0.005)}, seconds=0.1, progress=parts.append)
    assert parts == sorted(parts)
    assert 0 < parts[0] <= parts[-1] <= 1
    assert parts[-1] == 1.0
