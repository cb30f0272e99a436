"""How a cluster's CPUs are shared out, for machines as Ray describes them."""

from vitrail.cluster.runtime import share_cpus

GPU_MACHINE, CPU_MACHINE = {"CPU": 16.0, "GPU": 2.0}, {"CPU": 64.0}


def test_workers_share_all_cpus_equally() -> None:
    assert share_cpus([{"CPU": 7.0}], 2) == 3
    assert share_cpus([{"CPU": 7.0}], 2, of=0.5) == 1
    assert share_cpus([{"CPU": 1.0}], 4) == 1


def test_share_is_no_more_than_a_machine_has() -> None:
    assert share_cpus([{"CPU": 8.0}, {"CPU": 8.0}, {"CPU": 4.0}], 1) == 8


def test_gpu_workers_share_the_cpus_beside_gpus() -> None:
    machines = [GPU_MACHINE, GPU_MACHINE, CPU_MACHINE, {}]
    assert share_cpus(machines, 4, on_gpu_machines=True) == 8
    assert share_cpus(machines, 1, on_gpu_machines=True) == 16
    assert share_cpus([CPU_MACHINE], 1, on_gpu_machines=True) == 1
