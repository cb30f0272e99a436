"""Who begins and who makes room, decided without a cluster."""

from typing import Any

import pytest

from vitrail.cluster.queue.policy import Demand, Expectation, QueuedJob, decide, expected_starts, fits

GPU = {"CPU": 48.0, "GPU": 4.0}
CPU = {"CPU": 16.0}


def job(name: str, gpus: int = 0, *, at: float = 0.0, runs: bool = False, workers: int = 1, **fields: Any) -> QueuedJob:
    demand = Demand(workers=gpus or workers, gpus_per_worker=1.0 if gpus else 0.0)
    return QueuedJob(id=name, demand=demand, queued_at=at, started_at=at if runs else None, **fields)


def test_first_come_is_first_served_until_the_machines_are_full() -> None:
    decision = decide([job("c", 2, at=3), job("a", 2, at=1), job("b", 2, at=2)], [GPU])
    assert decision.start == ("a", "b")
    assert decision.ask_to_yield == ()


def test_higher_priority_goes_first() -> None:
    assert decide([job("a", 4, at=1), job("b", 4, at=2, priority=1)], [GPU]).start == ("b",)


def test_nobody_behind_takes_what_the_first_waits_for() -> None:
    running = job("runs", 2, runs=True)
    assert decide([running, job("large", 4, at=1), job("small", 1, at=2)], [GPU]).start == ()
    assert decide([running, job("small", 1, at=2)], [GPU]).start == ("small",)


def test_jobs_for_other_machines_go_on_beside_one_that_waits() -> None:
    jobs = [job("runs", 2, runs=True), job("large", 4, at=1), job("prepare", at=2)]
    assert decide(jobs, [GPU]).start == ()
    assert decide(jobs, [GPU, CPU]).start == ("prepare",)


def test_jobs_without_gpus_leave_machines_with_gpus_for_last() -> None:
    twelve_cpus_each = job("a", 4, at=2)
    assert decide([job("b", workers=16, at=1), twelve_cpus_each], [GPU, CPU]).start == ("b", "a")
    assert decide([job("b", workers=17, at=1), twelve_cpus_each], [GPU, CPU]).start == ("b",)


def test_worker_is_whole_on_one_machine() -> None:
    two_gpus_each = Demand(workers=2, gpus_per_worker=2)
    assert fits(two_gpus_each, [{"CPU": 8.0, "GPU": 2.0}] * 2)
    assert not fits(two_gpus_each, [{"CPU": 8.0, "GPU": 3.0}, {"CPU": 8.0, "GPU": 1.0}])
    assert not fits(Demand(cpus_per_worker=12), [{"CPU": 8.0}] * 2)


def test_job_that_machines_were_lost_for_does_not_hold_up_others() -> None:
    jobs = [job("large", 8, at=1), job("small", 4, at=2)]
    assert decide(jobs, [GPU]).start == ("small",)
    assert expected_starts(jobs, [GPU], now=0)["large"] == Expectation(None, ())


def test_elastic_job_begins_with_what_the_cluster_has_in_all() -> None:
    elastic = Demand(workers=8, min_workers=2, gpus_per_worker=1)
    waiting = QueuedJob(id="elastic", demand=elastic, queued_at=1)
    assert decide([waiting], [GPU]).start == ("elastic",)
    assert decide([waiting, job("runs", 1, runs=True)], [GPU]).start == ()
    assert decide([waiting], [{"CPU": 8.0, "GPU": 1.0}]).start == ()


def test_sweep_takes_the_cluster_when_it_is_empty() -> None:
    sweep = QueuedJob(id="sweep", demand=Demand(whole_cluster=True), queued_at=1)
    assert decide([sweep, job("later", at=2)], [CPU]).start == ("sweep",)
    assert decide([sweep, job("runs", runs=True), job("later", at=2)], [CPU]).start == ()


def test_preemptible_jobs_of_lower_priority_make_room_for_one_that_waits() -> None:
    jobs = [
        job("kept", 1, runs=True, at=1),
        job("old", 1, runs=True, at=2, preemptible=True),
        job("young", 1, runs=True, at=3, preemptible=True),
        job("higher", 1, runs=True, at=4, preemptible=True, priority=2),
    ]
    one = decide([*jobs, job("urgent", 1, at=5, priority=1)], [GPU])
    assert (one.ask_to_yield, one.for_job) == (("young",), "urgent")
    two = decide([*jobs, job("urgent", 2, at=5, priority=1)], [GPU])
    assert set(two.ask_to_yield) == {"young", "old"}
    three = decide([*jobs, job("urgent", 3, at=5, priority=1)], [GPU])
    assert three.ask_to_yield == ()  # it would not do


def test_same_priority_never_yields() -> None:
    assert decide([job("a", 4, runs=True, preemptible=True), job("b", 4, at=1)], [GPU]).ask_to_yield == ()


def test_those_that_are_yielding_are_waited_for() -> None:
    jobs = [
        job("leaving", 2, runs=True, preemptible=True, yielding=True),
        job("stays", 2, runs=True, preemptible=True),
        job("urgent", 2, at=1, priority=1),
    ]
    assert decide(jobs, [GPU]).ask_to_yield == ()
    assert decide([*jobs, job("more", 2, at=2, priority=1)], [GPU]).start == ()


def test_large_job_is_spared_where_small_ones_do_not_do_without_it() -> None:
    jobs = [job("small", 1, runs=True, at=2, preemptible=True), job("large", 3, runs=True, at=1, preemptible=True)]
    assert decide([*jobs, job("urgent", 3, at=3, priority=1)], [GPU]).ask_to_yield == ("large",)


def test_expected_start_follows_from_the_expected_ends() -> None:
    jobs = [
        job("a", 2, runs=True, ends_at=100.0),
        job("b", 2, runs=True, ends_at=300.0),
        job("c", 2, at=1),
        job("d", 2, at=2),
        job("e", 2, at=3),
    ]
    expected = expected_starts(jobs, [GPU], now=10.0)
    assert expected == {"c": Expectation(100.0, ()), "d": Expectation(300.0, ()), "e": Expectation(None, ("c", "d"))}


def test_expected_start_is_in_the_past_never() -> None:
    late = job("late", 4, runs=True, ends_at=5.0)
    assert expected_starts([late, job("next", 4, at=1)], [GPU], now=10.0)["next"].at == pytest.approx(10.0)


def test_job_that_others_make_room_for_is_expected_now() -> None:
    jobs = [job("low", 4, runs=True, preemptible=True), job("urgent", 4, at=1, priority=1), job("next", 4, at=2)]
    expected = expected_starts(jobs, [GPU], now=10.0)
    assert expected["urgent"] == Expectation(10.0, ())
    assert expected["next"].after == ("low",)  # which then waits too, and was there before


def test_who_does_not_come_next_is_after_the_one_before() -> None:
    jobs = [job("runs", 4, runs=True), job("a", 4, at=1), job("b", 4, at=2), job("large", 8, at=3), job("c", 4, at=4)]
    after = {name: expected.after for name, expected in expected_starts(jobs, [GPU], now=0).items()}
    assert after == {"a": ("runs",), "b": ("a",), "large": (), "c": ("b",)}
