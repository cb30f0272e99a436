"""Where workers go, by the resources of machines alone."""

from pathlib import Path

import yaml

from vitrail.cluster.preflight.placement import Need, NodeType, Share, node_types, place

GPU, CPU = {"CPU": 48.0, "GPU": 4.0}, {"CPU": 16.0}
TYPES = [NodeType(name="gpu", resources=GPU, max_workers=8), NodeType(name="data", resources=CPU, max_workers=4)]


def test_machines_that_are_there_are_filled_before_others_are_started() -> None:
    found = place(Need(8, cpus=12, gpus=1), {"head": {"CPU": 0}, "gpu a": GPU}, TYPES, {"gpu": 1})
    assert found.shares == (Share("gpu a", 4, 1, to_start=False), Share("gpu", 4, 1, to_start=True))


def test_no_more_machines_are_started_than_the_file_allows() -> None:
    found = place(Need(40, cpus=12, gpus=1), {"gpu a": GPU}, TYPES, {"gpu": 1})
    assert (found.placed, found.asked) == (32, 40)
    assert found.shares[-1] == Share("gpu", 28, 7, to_start=True)


def test_worker_needs_all_of_its_gpus_on_one_machine() -> None:
    assert [share.count for share in place(Need(3, cpus=1, gpus=3), {"a": GPU, "b": GPU}).shares] == [1, 1]
    assert place(Need(1, cpus=1, gpus=5), {"a": GPU, "b": GPU}, TYPES).placed == 0
    assert place(Need(1, cpus=17), {"a": CPU}, TYPES[1:]).placed == 0


def test_what_needs_no_gpu_stays_off_machines_that_have_some() -> None:
    assert [share.machines for share in place(Need(20), {"a": GPU, "b": CPU}).shares] == ["b", "a"]
    assert [share.machines for share in place(Need(20), {}, TYPES).shares] == ["data"]


def test_types_are_those_of_the_launchers_file() -> None:
    launcher = yaml.safe_load((Path(__file__).parents[2] / "cluster.yaml").read_text())
    assert [(each.name, each.max_workers) for each in node_types(launcher)] == [("gpu", 8), ("data", 4)]
    assert node_types({"provider": {"type": "local"}}) == []
