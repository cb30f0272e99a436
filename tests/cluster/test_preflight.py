"""From what a probe found to what a person is told, without a cluster."""

from typing import Any

import pytest

from vitrail.cluster.preflight.facts import Answer, Asked, Facts, MachineFacts, Question, RunFacts
from vitrail.cluster.preflight.findings import Preflight, judge
from vitrail.cluster.preflight.placement import NodeType
from vitrail.config import RunConfig
from vitrail.recipes import get_recipe

VERSIONS = {"python": "3.11", "ray": "2.60.0"}
GPU_TYPE = NodeType(name="gpu", resources={"CPU": 8, "GPU": 2}, max_workers=2)


def answer(**changes: Any) -> Answer:
    values: dict[str, Any] = {"cpu": "x", "cores": 8, "gpus": (), "versions": VERSIONS}
    return Answer(**{**values, "cache": "/cache", "cache_free_bytes": 10**12, **changes})


def machine(name: str, said: Answer | None = None, *, cpus: float = 8, gpus: float = 0, **changes: Any) -> MachineFacts:
    resources = {"CPU": cpus, "GPU": gpus}
    return MachineFacts(
        **{"name": name, "head": name == "head", "type": None, "resources": resources} | changes, answer=said
    )


def facts(*machines: MachineFacts, run: dict[str, Any] | None = None, **changes: Any) -> Facts:
    """Of a cluster with a head that holds no worker; `run` changes the planned run of two workers with four CPUs."""
    config = {"name": "r", "recipe": get_recipe("upernet_vit-nano_mln_128x128_1k"), "data_fingerprint": "f" * 16}
    config |= {"data": "/d", "folder": "/runs/r", "workers": 2, "cpus_per_worker": 4, **(run or {})}
    planned = RunFacts(config=RunConfig(**config), images={"training": 9, "validation": 3}, data_bytes=10**9)
    asked = Asked(workers=config["workers"], least=config.get("min_workers") or config["workers"], gpus_per_worker=0)
    values = {"cluster": None, "types": (), "available": {"CPU": 8, "GPU": 0}, "asked": asked, "run": planned}
    values["question"] = Question(data="/d", tracking_uri="http://mlflow", checkpoints="/runs")
    head = machine("head", answer(), cpus=0)
    return Facts(**{**values, "machines": (head, *machines), **changes})


def told(found: Facts, **changes: Any) -> Preflight:
    return judge(found, **{"checkpoint_bytes": 10**9, "versions": VERSIONS, **changes})


def names(found: Preflight) -> list[str]:
    return [finding.name for finding in found.findings]


def test_sound_job_has_no_findings() -> None:
    found = told(facts(machine("a", answer())))
    assert (names(found), found.exit_code) == ([], 0)
    assert found.placement is not None
    assert [(share.machines, share.count) for share in found.placement.shares] == [("a", 2)]


def test_what_can_never_be_placed_is_an_error_and_what_can_begin_smaller_is_not() -> None:
    one = told(facts(machine("a", answer()), run={"cpus_per_worker": 9}))
    assert (names(one), one.exit_code) == (["no-place"], 2)
    some = told(facts(machine("a", answer()), run={"workers": 3}))
    assert names(some) == ["too-few-places"]
    assert "2 of 3 places" in some.findings[0].text
    fewer = told(facts(machine("a", answer()), run={"workers": 3, "min_workers": 1}))
    assert (names(fewer), fewer.exit_code) == (["fewer-places"], 0)
    beside = told(facts(machine("a", answer()), run={"validate_beside": True}))
    assert names(beside) == ["too-few-places"]


def test_machines_that_are_yet_to_be_started_hold_workers_and_are_said_to_be_unasked() -> None:
    for where in ({"types": (GPU_TYPE,)}, {}):
        found = told(facts(**where, run={"workers": 3}), types=[] if where else [GPU_TYPE])
        assert (names(found), found.exit_code) == (["unasked"], 0)
        assert found.placement is not None
        assert [(share.machines, share.on) for share in found.placement.shares] == [("gpu", 2)]


def test_cluster_in_use_is_a_warning() -> None:
    found = told(facts(machine("a", answer()), available={"CPU": 5, "GPU": 0}))
    assert (names(found), found.exit_code) == (["busy"], 0)
    assert "5 CPUs" in found.findings[0].text and "8 are wanted" in found.findings[0].text


def test_same_trouble_is_told_once_with_its_machines() -> None:
    troubled = answer(data_error="/d does not exist")
    found = told(facts(machine("a", troubled), machine("b", troubled)))
    assert [finding.text for finding in found.findings] == ["a and b: /d does not exist"]
    everywhere = facts(machine("a", troubled))
    everywhere = everywhere.model_copy(
        update={"machines": (machine("head", troubled, cpus=0), *everywhere.machines[1:]), "refusal": "the same"}
    )
    assert [finding.text for finding in told(everywhere).findings] == ["every machine: /d does not exist"]


def test_machine_that_holds_no_worker_need_not_reach_anything() -> None:
    small = machine("small", answer(data_error="no", weights_error="no"), cpus=2)
    assert names(told(facts(machine("a", answer()), small))) == []
    assert "data-unreachable" in names(told(facts(machine("a", answer()), small, run={"ingest": "ray-data"})))


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({"tracking_error": "nothing answers (ConnectionError)"}, "mlflow-unreachable"),
        ({"tracking_error": "You are not authenticated.", "tracking_refused": True}, "mlflow-refused"),
        ({"checkpoints_error": "Permission denied"}, "checkpoints-unwritable"),
        ({"weights_error": "there is no file 'w.pth'"}, "weights-unreachable"),
        ({"unshared": ("/runs",)}, "checkpoints-not-shared"),
        ({"unshared": ("/other",)}, "mlflow-not-shared"),
    ],
)
def test_each_trouble_of_a_machine_has_a_name(said: dict[str, Any], name: str) -> None:
    question = Question(checkpoints="/runs", tracking_uri="x", marks={"/runs": "/runs/.m", "/other": "/other/.m"})
    found = told(facts(machine("a", answer(**said)), question=question))
    assert (names(found), found.exit_code) == ([name], 2)
    assert found.findings[0].text.startswith("a: ") or "a does not share" in found.findings[0].text
    assert found.findings[0].way_out


def test_data_that_differ_are_an_error() -> None:
    found = told(facts(machine("a", answer(data_fingerprint="1")), machine("b", answer(data_fingerprint="2"))))
    assert names(found) == ["data-differs"]


def test_space_is_for_all_that_are_kept_and_the_one_being_written() -> None:
    whole = facts(machine("a", answer()))
    assert whole.run is not None
    for free, kept, expected in ((4, 0, []), (3, 0, ["no-space"]), (2, 2, []), (1, 2, ["no-space"])):
        run = whole.run.model_copy(update={"free_bytes": free * 10**9, "kept": kept})
        assert names(told(whole.model_copy(update={"run": run}))) == expected


def test_store_needs_room_on_the_workers_disk_for_a_checkpoint_and_the_data() -> None:
    run = {"data": "s3://b/d", "checkpoint_root": "s3://b/runs/r"}
    for free, expected in ((2, []), (1.9, ["no-space"])):
        small = answer(cache_free_bytes=int(free * 10**9))
        found = told(facts(machine("a", small), run=run))
        assert names(found) == expected


def test_other_versions_and_silence_are_warnings() -> None:
    found = told(facts(machine("a", answer(versions={"python": "3.11", "ray": "2.59.0"})), machine("b")))
    assert (names(found), found.exit_code) == (["versions-differ", "silent"], 0)
    assert found.findings[0].text == "a: ray 2.59.0 (2.60.0 here)"
    many = told(facts(machine("a", answer()), *(machine(f"b{n}", asked=False) for n in range(3))))
    assert [(finding.name, finding.text[:10]) for finding in many.findings] == [("unasked", "3 machines")]


def test_refused_plan_and_taken_name_are_errors() -> None:
    refused = facts(machine("a", answer()), run={"workers": 2}, refusal="a global batch of 1 has fewer samples")
    assert names(told(refused.model_copy(update={"run": None}))) == ["refused"]
    whole = facts(machine("a", answer()))
    assert whole.run is not None
    taken = whole.run.model_copy(update={"name_error": "/runs/r holds another run"})
    assert names(told(whole.model_copy(update={"run": taken}))) == ["name-taken"]
