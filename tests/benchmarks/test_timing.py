import time

from benchmarks.timing import interleaved_ms


def test_medians_of_known_durations_and_turns_are_interleaved() -> None:
    calls: list[str] = []

    def sleeper(name: str, seconds: float):
        def run() -> None:
            calls.append(name)
            time.sleep(seconds)

        return run

    medians = interleaved_ms(
        {"quick": sleeper("quick", 0.001), "slow": sleeper("slow", 0.004)}, rounds=2, block=3, warm_up=1
    )
    assert calls == ["quick", "slow"] + (["quick"] * 4 + ["slow"] * 4) * 2
    assert 1.0 <= medians["quick"] < 4.0 <= medians["slow"]


def test_one_slow_call_does_not_move_the_median() -> None:
    durations = iter([0, 0, 0, 0.05, 0, 0, 0, 0, 0, 0, 0, 0])
    assert (
        interleaved_ms({"mostly quick": lambda: time.sleep(next(durations))}, rounds=2, block=4, warm_up=2)[
            "mostly quick"
        ]
        < 10
    )
