"""Counts and times for people."""

from vitrail.words import duration, plural


def test_durations_are_for_people() -> None:
    shown = [duration(seconds) for seconds in (0, 119, 120, 7_199, 7_200, 172_799, 300_000)]
    assert shown == ["0 s", "119 s", "2 min", "119 min", "2 h 00", "47 h 59", "3 d 11"]


def test_one_of_a_thing_is_not_many() -> None:
    assert [plural(count, "error") for count in (0, 1, 1_200)] == ["0 errors", "1 error", "1,200 errors"]
