"""Each thing that can be wrong with a version in use is found, and nothing else."""

import json
from pathlib import Path

import pytest
from verdicts import give

from vitrail.tracking.audit import Finding, audit
from vitrail.tracking.environment import connect
from vitrail.tracking.registration import register
from vitrail.tracking.registry import show
from vitrail.tracking.store import artifact_location

NAME = "streets"


@pytest.fixture
def champion(store, make_checkpoint, tiny_manifest) -> str:
    """A store whose model has a champion with a run and a data set, and a second version; returns its address."""
    client = connect(store)
    run = client.create_run(client.create_experiment("streets", artifact_location(store, "streets")))
    fingerprint, place = tiny_manifest
    for seed, miou in enumerate((0.5, 0.6)):
        checkpoint = make_checkpoint(f"c{seed}", seed=seed, miou=miou, fingerprint=fingerprint)
        version = register(checkpoint, name=NAME, tracking_uri=store, run_id=run.info.run_id)
        client.set_model_version_tag(NAME, str(version.number), "vitrail.data_uri", place)
    give(NAME, 1, tracking_uri=store)
    return store


@pytest.fixture
def tiny_manifest(tmp_path) -> tuple[str, str]:
    """Fingerprint and place of a data set."""
    from vitrail.data.manifest import Manifest

    manifest = Manifest(
        name="streets",
        classes=("sky",),
        palette=((1, 2, 3),),
        reduce_zero_label=False,
        splits={},
        source_signature="",
    ).sealed()
    (tmp_path / "data").mkdir()
    manifest.save(tmp_path / "data")
    return Manifest.load(tmp_path / "data").fingerprint, str(tmp_path / "data")


def kinds(store: str) -> list[tuple[str, str]]:
    return [(finding.alias, finding.kind) for finding in audit(tracking_uri=store)]


def test_promoted_version_is_in_order(champion):
    assert audit(tracking_uri=champion) == []


def test_alias_that_was_moved_by_hand_is_found(champion):
    connect(champion).set_registered_model_alias(NAME, "champion", "2")
    connect(champion).set_registered_model_alias(NAME, "blessed", "1")
    assert kinds(champion) == [("blessed", "history"), ("champion", "history"), ("champion", "verdict")]


def test_forced_promotion_is_in_order_and_a_failed_verdict_alone_is_not(champion):
    give(NAME, 2, tracking_uri=champion)
    give(NAME, 1, tracking_uri=champion, force=True, reason="smaller")
    assert kinds(champion) == []
    connect(champion).set_registered_model_alias(NAME, "night", "1")
    assert kinds(champion) == [("night", "history"), ("night", "verdict")]


def test_verdict_on_other_weights_is_none(champion):
    client = connect(champion)
    report = json.loads(show(NAME, version="1", tracking_uri=champion).tags["vitrail.gate.report"])
    report["candidate"]["lineage"]["weights_sha256"] = "0" * 64
    client.set_model_version_tag(NAME, "1", "vitrail.gate.report", json.dumps(report))
    assert audit(tracking_uri=champion) == [Finding(NAME, "champion", 1, "verdict", "its verdict is on other weights")]


def test_changed_and_missing_files_are_found(champion):
    root = Path(champion.removeprefix("sqlite:///")).parent
    model_id = show(NAME, version="1", tracking_uri=champion).model_id
    (weights,) = (root / "artifacts").rglob(f"{model_id}/artifacts/**/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (finding,) = audit(tracking_uri=champion)
    assert (finding.kind, "model.safetensors" in finding.detail) == ("files", True)
    assert audit(tracking_uri=champion, files=False) == []
    weights.unlink()
    (finding,) = audit(tracking_uri=champion)
    assert "missing" in finding.detail


def test_run_and_data_that_are_gone_are_found(champion, tmp_path):
    client = connect(champion)
    client.delete_run(show(NAME, version="1", tracking_uri=champion).run_id)
    (tmp_path / "data" / "manifest.json").unlink()
    assert kinds(champion) == [("champion", "run"), ("champion", "data")]


def test_champion_that_was_deleted_is_missed(champion):
    give(NAME, 2, tracking_uri=champion)
    connect(champion).delete_model_version(NAME, "2")
    (finding,) = audit(tracking_uri=champion)
    assert (finding.alias, finding.version, finding.kind) == ("champion", 2, "history")
    assert "has been deleted" in finding.detail
