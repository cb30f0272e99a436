"""A busy cluster as `vitrail top` reads it, made up: eight machines with GPUs, and jobs in every state."""

from dataclasses import replace

from vitrail.cluster.jobs.jobs import Job
from vitrail.cluster.watching.job_progress import JobProgress
from vitrail.cluster.watching.view import ClusterView, Gpu, MachineUse, Use, WatchedJob

GIB = 2**30
TRAINING = JobProgress(
    unit="steps",
    done=120_310,
    total=160_000,
    phase="training",
    images_per_s=1412.3,
    data_wait_share=0.02,
    seconds_left=3 * 3600.0,
    miou=0.4312,
)


def job(name: str, status: str = "RUNNING", *, owner: str = "ada", seconds: float = 11_100.0) -> Job:
    return Job(
        id=f"{name}-1",
        name=name,
        status=status,
        owner=owner,
        command="jobs/train.py",
        revision="0" * 40,
        submitted_at="2026-01-01T00:00:00+00:00",
        seconds=seconds,
        exit_status=None,
        message="",
        machine="f" * 56,
        ray_job="02000000",
    )


def machine(number: int, *, gpus: int = 4) -> MachineUse:
    devices = tuple(Gpu("NVIDIA A10G", 90.0 + index, Use(18_000.0 + 1000 * index, 23_028.0)) for index in range(gpus))
    return MachineUse(
        name=f"10.0.0.{number}",
        is_head=not gpus,
        cpus=Use(48.0 if gpus else 0.0, 48.0 if gpus else 0.0),
        gpus=Use(float(gpus), float(gpus)),
        cpu_percent=71.3,
        memory_bytes=Use(61.25 * GIB, 186.0 * GIB),
        object_store_bytes=Use(3.5 * GIB, 55.8 * GIB),
        devices=devices,
        workers=gpus,
    )


def busy_view(*, jobs: int = 50, machines: int = 9) -> ClusterView:
    """As many jobs, nine at least.

    One that validates, one whose workers restart, a sweep, one that makes room, three that wait, and many that ended.
    """
    sweep = JobProgress(unit="trials", done=7, total=12, phase="running", miou=0.31)
    watched = [
        WatchedJob(job("upernet_deit-s16_ln_mln_512x512_160k_ade20k-night"), TRAINING, 16),
        WatchedJob(job("scenes", owner="grace.hopper"), replace(TRAINING, images_per_s=87.7, miou=None), 8),
        WatchedJob(job("validates"), replace(TRAINING, phase="validating"), 4),
        WatchedJob(job("restarts", seconds=300_000), TRAINING, 0),
        WatchedJob(job("necks"), sweep, 4),
        WatchedJob(job("yields", "YIELDING"), replace(TRAINING, images_per_s=300.0), 2),
        WatchedJob(job("sent", "PENDING", seconds=45), None, None),
        *(WatchedJob(job(f"waits{number}", "QUEUED", seconds=45), None, None) for number in range(2)),
    ]
    endings = ("SUCCEEDED", "FAILED", "STOPPED")
    while len(watched) < jobs:
        watched.append(WatchedJob(job(f"ended{len(watched)}", endings[len(watched) % 3]), TRAINING, 0))
    return ClusterView(tuple(watched), tuple(machine(number, gpus=4 if number else 0) for number in range(machines)), 0)
