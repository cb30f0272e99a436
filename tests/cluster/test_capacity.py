"""What a cluster that grows may hold, from the launcher's file alone."""

from pathlib import Path

import pytest

from vitrail.cluster.capacity import (
    CLUSTER_VARIABLE,
    described,
    fewest_machines,
    machines_of,
    read_launcher_file,
    startable_machines,
    worker_places,
)
from vitrail.cluster.runtime import check_feasible, cpu_share, has_cpu_machines

FILE = Path(__file__).parents[2] / "cluster.yaml"
GPU, CPU = {"CPU": 48, "GPU": 4}, {"CPU": 16}


@pytest.fixture
def grown(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the head of the cluster, before any machine was started."""
    monkeypatch.setenv(CLUSTER_VARIABLE, str(FILE))


def test_machines_are_those_that_the_file_lets_ray_start() -> None:
    found = machines_of(read_launcher_file(FILE))
    assert sorted(found, key=str) == sorted([GPU] * 8 + [CPU] * 4, key=str)
    assert described(found) == "448 CPUs and 32 GPUs"


def test_own_machines_are_not_guessed() -> None:
    assert machines_of({"provider": {"type": "local", "worker_ips": ["192.0.2.2"]}}) == []
    assert machines_of({"head_node_type": "head", "available_node_types": {"gpu": {"resources": {}}}}) == []


def test_no_file_means_the_machines_that_are_alive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(CLUSTER_VARIABLE, raising=False)
    assert startable_machines() == []
    monkeypatch.setenv(CLUSTER_VARIABLE, str(tmp_path / "nowhere.yaml"))
    assert startable_machines() == []


def test_a_worker_needs_its_gpus_and_a_cpu_on_one_machine() -> None:
    assert worker_places([GPU, CPU], gpus_per_worker=0) == 64
    assert worker_places([GPU, CPU], gpus_per_worker=1) == 4
    assert worker_places([GPU, GPU], gpus_per_worker=3) == 2
    assert worker_places([{"GPU": 4}], gpus_per_worker=1) == 0


def test_run_takes_no_more_machines_than_it_needs() -> None:
    machines = [CPU, GPU, CPU, GPU, GPU]
    assert fewest_machines(machines, 8, on_gpu_machines=True) == [GPU, GPU]
    assert fewest_machines(machines, 20, on_gpu_machines=False) == [CPU, CPU]
    assert fewest_machines([GPU], 9, on_gpu_machines=True) == [GPU]


def test_workers_share_the_machines_that_will_be_started_for_them(grown: None) -> None:
    # Two machines of 48 CPUs for eight GPUs, as after they were started.
    assert cpu_share(8, on_gpu_machines=True) == 12
    assert cpu_share(1, on_gpu_machines=True) == 48
    assert cpu_share(4) == 4
    assert has_cpu_machines()


def test_what_fits_on_a_grown_cluster_is_feasible_before_it_has_grown(grown: None) -> None:
    check_feasible(32, cpus_per_worker=12, gpus_per_worker=1)
    with pytest.raises(ValueError, match=r"33 workers .* do not fit .* 448 CPUs and 32 GPUs"):
        check_feasible(33, cpus_per_worker=1, gpus_per_worker=1)
