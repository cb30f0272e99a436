"""Which of the jobs that wait may begin, and which of those that run should make room: decided here, done elsewhere.

Higher priorities go first, and within a priority whoever came first. Whoever is first and does not fit keeps the kind
of machine that it needs from those behind it, so that nobody waits for ever; jobs for other machines go on. For a job
that waits, preemptible ones of a lower priority are asked to yield, as few and as low as will do.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from vitrail.cluster.capacity import Machine


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a job needs all at once to run."""

    workers: int = 1
    min_workers: int | None = None
    """With so few it can do, if the whole cluster does not hold more."""
    cpus_per_worker: int | None = None
    """None: what belongs to its GPUs, or, without any, one."""
    gpus_per_worker: float = 0.0
    whole_cluster: bool = False
    """Whether it takes all there is, as a sweep does that was not told how many trials to run at a time."""

    def cpus(self, machines: Iterable[Machine]) -> int:
        """CPUs of each worker on these machines."""
        if self.cpus_per_worker is not None:
            return self.cpus_per_worker
        if not self.gpus_per_worker:
            return 1
        shares = [machine["CPU"] / machine["GPU"] for machine in machines if machine.get("GPU")]
        return max(1, int(min(shares, default=1) * self.gpus_per_worker))


@dataclass(frozen=True, kw_only=True)
class QueuedJob:
    """A job that waits, runs, or runs and has been asked to yield."""

    id: str
    priority: int = 0
    queued_at: float
    """Unix time."""
    demand: Demand
    preemptible: bool = False
    started_at: float | None = None
    """None while it waits."""
    yielding: bool = False
    ends_at: float | None = None
    """Expected, of a job that runs; None if unknown."""

    @property
    def waits(self) -> bool:
        """Whether it has no place now."""
        return self.started_at is None


@dataclass(frozen=True)
class Decision:
    """What should happen now."""

    start: tuple[str, ...]
    ask_to_yield: tuple[str, ...]
    for_job: str | None = None
    """For whose sake others should yield."""


@dataclass(frozen=True)
class Expectation:
    """When a job is expected to begin."""

    at: float | None
    """Unix time; None if it waits for what nobody knows the end of."""
    after: tuple[str, ...]
    """What it waits for if `at` is unknown: the job whose turn is before its own, or those that run; empty where
    machines are missing."""


def decide(jobs: Iterable[QueuedJob], machines: Sequence[Machine]) -> Decision:
    """What should happen now with these jobs on these machines."""
    jobs = list(jobs)
    running = [job for job in jobs if not job.waits]
    free = _free(machines, running)
    start: list[str] = []
    victims: list[QueuedJob] = []
    blocked: QueuedJob | None = None
    for job in in_order(jobs):
        if not fits(job.demand, machines):
            continue
        left = _place(job.demand, free, machines)
        if left is not None:
            start.append(job.id)
            free = left
            continue
        if blocked is None:
            blocked, victims = job, _victims(job, running, start, jobs, machines)
        free = _without(free, job.demand)
    return Decision(tuple(start), tuple(job.id for job in victims), blocked.id if blocked and victims else None)


def in_order(jobs: Iterable[QueuedJob]) -> list[QueuedJob]:
    """Those that wait, whose turn is first first."""
    return sorted((job for job in jobs if job.waits), key=lambda job: (-job.priority, job.queued_at, job.id))


def fits(demand: Demand, machines: Sequence[Machine]) -> bool:
    """Whether the machines would hold it if nothing else ran."""
    return _place(demand, machines, machines) is not None


def expected_starts(jobs: Iterable[QueuedJob], machines: Sequence[Machine], *, now: float) -> dict[str, Expectation]:
    """When each job that waits is expected to begin, were every job to end when it is expected to."""
    jobs, found = list(jobs), dict[str, Expectation]()
    asked = {job.id for job in jobs if job.waits}
    while True:
        for job_id in (decision := decide(jobs, machines)).start:
            found[job_id] = Expectation(now, ())
            # Nobody knows how long a job takes that has not begun.
            jobs = [replace(job, started_at=now) if job.id == job_id else job for job in jobs]
        leaving = [job for job in jobs if job.id in decision.ask_to_yield or job.yielding]
        ends = [job for job in jobs if not job.waits and job.ends_at is not None and job not in leaving]
        if leaving:  # which takes a minute, and they come back behind whom they left for
            jobs = [replace(job, started_at=None, yielding=False) if job in leaving else job for job in jobs]
        elif ends:
            first = min(ends, key=lambda job: job.ends_at or 0.0)
            now, jobs = max(now, first.ends_at or now), [job for job in jobs if job is not first]
        else:
            break
    before = tuple(job.id for job in jobs if not job.waits)
    for job in in_order(jobs):
        if not fits(job.demand, machines):
            found[job.id] = Expectation(None, ())
            continue
        found[job.id] = Expectation(None, before)
        before = (job.id,)
    return {job_id: expectation for job_id, expectation in found.items() if job_id in asked}


def _victims(
    job: QueuedJob,
    running: Sequence[QueuedJob],
    starting: Sequence[str],
    jobs: Sequence[QueuedJob],
    machines: Sequence[Machine],
) -> list[QueuedJob]:
    """The fewest and lowest jobs whose places the job needs, besides those that are yielding already."""
    staying = [other for other in running if not other.yielding] + [other for other in jobs if other.id in starting]
    if _place(job.demand, _free(machines, staying), machines) is not None:
        return []
    lower = [other for other in running if other.preemptible and not other.yielding and other.priority < job.priority]
    lower.sort(key=lambda other: (other.priority, -(other.started_at or 0.0)))
    victims: list[QueuedJob] = []
    for other in lower:
        victims.append(other)
        if _fits_without(job, victims, staying, machines):
            break
    else:
        return []
    for other in reversed(victims[:]):  # the highest and longest running of them may be spared after all
        fewer = [victim for victim in victims if victim is not other]
        if _fits_without(job, fewer, staying, machines):
            victims = fewer
    return victims


def _fits_without(
    job: QueuedJob, gone: Sequence[QueuedJob], staying: Sequence[QueuedJob], machines: Sequence[Machine]
) -> bool:
    return _place(job.demand, _free(machines, [other for other in staying if other not in gone]), machines) is not None


def _free(machines: Sequence[Machine], running: Iterable[QueuedJob]) -> list[dict[str, float]]:
    """What the jobs leave of the machines; a job that no longer fits, after a loss of machines, has what it can."""
    free = [dict(machine) for machine in machines]
    for job in running:
        if job.demand.whole_cluster:
            return [{} for _ in free]
        free, _ = _put(job.demand, job.demand.workers, free, machines)
    return free


def _place(demand: Demand, free: Sequence[Machine], machines: Sequence[Machine]) -> list[dict[str, float]] | None:
    """What a job would leave of what is free; None if it does not fit."""
    if demand.whole_cluster:
        whole = bool(machines) and [dict(each) for each in free] == [dict(each) for each in machines]
        whole = whole and _put(demand, demand.workers, free, machines)[1] == demand.workers
        return [{} for _ in free] if whole else None
    workers = demand.workers
    if demand.min_workers is not None:
        most = _put(demand, workers, machines, machines)[1]
        workers = max(demand.min_workers, min(workers, most))
    left, placed = _put(demand, workers, free, machines)
    return left if placed == workers else None


def _put(
    demand: Demand, workers: int, free: Sequence[Machine], machines: Sequence[Machine]
) -> tuple[list[dict[str, float]], int]:
    """Place up to so many workers, each whole on one machine: what is left, and how many found a place."""
    left, placed, cpus = [dict(machine) for machine in free], 0, demand.cpus(machines)
    # Machines with GPUs are the last that jobs without are put on.
    for machine in sorted(left, key=lambda machine: machine.get("GPU", 0) if not demand.gpus_per_worker else 0):
        while placed < workers and _holds(machine, cpus, demand.gpus_per_worker):
            machine["CPU"] -= cpus
            if demand.gpus_per_worker:
                machine["GPU"] -= demand.gpus_per_worker
            placed += 1
    return left, placed


def _holds(machine: Machine, cpus: int, gpus: float) -> bool:
    return machine.get("CPU", 0) >= max(cpus, 1) and machine.get("GPU", 0) >= gpus


def _without(free: Sequence[Machine], demand: Demand) -> list[dict[str, float]]:
    """What is free of machines that the job could never use."""
    if demand.whole_cluster or not demand.gpus_per_worker:
        return [{} for _ in free]
    return [{} if "GPU" in machine else dict(machine) for machine in free]
