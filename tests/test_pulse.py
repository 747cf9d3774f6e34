from __future__ import annotations

from rllib_exit.pulse import Watch


def test_who_counts_no_further_for_too_long_is_silent() -> None:
    numbers, now = {"a": 1, "b": 1}, [100.0]
    watch = Watch(["a", "b"], 30, numbers.__getitem__, lambda: now[0])
    assert watch.silent() == []
    now[0] += 29
    numbers["a"] += 1
    assert watch.silent() == []
    now[0] += 2
    assert watch.silent() == [1]
    # Whoever goes on counting is alive.
    numbers["b"] += 1
    assert watch.silent() == []


def test_who_has_not_begun_to_count_is_waited_for() -> None:
    now = [100.0]
    watch = Watch(["a"], 30, {"a": None}.__getitem__, lambda: now[0])
    for _ in range(3):
        now[0] += 31
        assert watch.silent() == []
