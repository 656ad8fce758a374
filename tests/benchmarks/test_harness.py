"""The statistics and the order of sampling."""

import pytest

from gralora.bench.harness import interleave, ratio_spread, spread


def test_spread_of_five_values() -> None:
    found = spread([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (found.minimum, found.q1, found.median, found.q3, found.maximum) == (1, 2, 3, 4, 5)


def test_spread_of_one_value_is_that_value() -> None:
    assert set(spread([7.0]).as_dict().values()) == {7.0}


def test_one_disturbed_round_does_not_move_the_median() -> None:
    assert spread([1.0, 1.0, 1.0, 1.0, 500.0]).median == 1.0


def test_ratio_is_taken_within_rounds() -> None:
    # The machine slows down twofold midway; within every round the variant costs 1.5 times as much.
    reference = [1.0, 1.0, 2.0, 2.0]
    samples = [1.5, 1.5, 3.0, 3.0]
    found = ratio_spread(samples, reference)
    assert (found["minimum"], found["median"], found["maximum"]) == (1.5, 1.5, 1.5)


def test_ratio_of_minima_pairs_the_shortest_samples() -> None:
    assert ratio_spread([9.0, 3.0, 8.0], [2.0, 7.0, 9.0])["of_minima"] == 1.5


def test_ratio_refuses_samples_of_different_rounds() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratio_spread([1.0, 2.0], [1.0])


def test_every_timer_runs_once_a_round() -> None:
    log: list[str] = []
    interleave({name: _logging_timer(name, log) for name in "abc"}, rounds=4)
    rounds = [sorted(log[start : start + 3]) for start in range(0, 12, 3)]
    assert rounds == [["a", "b", "c"]] * 4


def test_order_changes_between_rounds() -> None:
    log: list[str] = []
    interleave({name: _logging_timer(name, log) for name in "abcd"}, rounds=9)
    assert len({tuple(log[start : start + 4]) for start in range(0, 36, 4)}) > 1


def test_samples_are_listed_by_round() -> None:
    ticks = iter(range(100))
    measured = interleave({"only": lambda: float(next(ticks))}, rounds=3)
    assert measured.samples == {"only": [0.0, 1.0, 2.0]}


class _ScriptedWatch:
    """Reports the given shares, one a round."""

    def __init__(self, *shares: float) -> None:
        self.shares = list(shares)

    def start(self) -> None:
        pass

    def others(self) -> float:
        return self.shares.pop(0)


def test_disturbed_round_is_taken_again() -> None:
    ticks = iter(range(100))
    watch = _ScriptedWatch(0.0, 0.5, 0.02)
    measured = interleave({"only": lambda: float(next(ticks))}, rounds=2, watch=watch)
    assert measured.samples == {"only": [0.0, 2.0]}
    assert measured.discarded == 1


def test_least_disturbed_rounds_count_where_none_is_quiet() -> None:
    ticks = iter(range(100))
    watch = _ScriptedWatch(0.9, 0.3, 0.8, 0.7)
    measured = interleave({"only": lambda: float(next(ticks))}, rounds=1, watch=watch)
    assert measured.samples == {"only": [1.0]}
    assert measured.others == [0.3]


def _logging_timer(name: str, log: list[str]):
    def timer() -> float:
        log.append(name)
        return 1.0

    return timer
