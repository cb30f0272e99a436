import json

import pytest

from vitrail.errors import UsageError
from vitrail.tracking.environment import connect
from vitrail.tracking.gate import GateRefusedError
from vitrail.tracking.promotion import Move, history, promote, rollback, succession
from vitrail.tracking.registration import register
from vitrail.tracking.registry import download, get_model, show

NAME = "streets"


@pytest.fixture
def versions(store, make_checkpoint) -> str:
    """A model with versions of mIoU 0.5, 0.6, 0.55 and 0.7; returns the store's address."""
    for seed, miou in enumerate((0.5, 0.6, 0.55, 0.7)):
        register(make_checkpoint(f"c{seed}", seed=seed, miou=miou), name=NAME, tracking_uri=store)
    return store


def champion(store: str) -> int | None:
    return get_model(NAME, tracking_uri=store).aliases.get("champion")


def test_better_version_becomes_champion_and_can_be_fetched_by_alias(versions, tmp_path):
    assert promote(NAME, 1, tracking_uri=versions).move.from_version is None
    promotion = promote(NAME, 2, tracking_uri=versions)

    assert (promotion.move.from_version, promotion.move.to_version, promotion.verdict.passed) == (1, 2, True)
    assert champion(versions) == 2
    folder = download(f"models:/{NAME}@champion", tmp_path / "fetched", tracking_uri=versions)
    assert json.loads((folder / "data" / "checkpoint.json").read_text())["scores"]["mIoU"] == 0.6


def test_worse_version_is_refused_with_its_verdict_written_on_it(versions):
    promote(NAME, 2, tracking_uri=versions)
    with pytest.raises(GateRefusedError, match=r"55\.00%.*60\.00%"):
        promote(NAME, 3, tracking_uri=versions)

    assert champion(versions) == 2
    refused = show(NAME, version="3", tracking_uri=versions)
    assert refused.tags["vitrail.gate.verdict"] == "fail"
    assert json.loads(refused.tags["vitrail.gate.report"])["champion"]["version"] == 2
    (file,) = connect(versions).list_logged_model_artifacts(refused.model_id, "gate")
    assert file.path.startswith("gate/champion-")
    assert len(history(NAME, tracking_uri=versions)) == 1


def test_force_needs_a_reason_and_is_recorded(versions):
    promote(NAME, 2, tracking_uri=versions)
    with pytest.raises(UsageError, match="--reason"):
        promote(NAME, 3, force=True, reason="  ", tracking_uri=versions)
    promotion = promote(NAME, 3, force=True, reason="smaller", tracking_uri=versions)

    assert not promotion.verdict.passed
    assert champion(versions) == 3
    last = history(NAME, tracking_uri=versions)[-1]
    assert (last.action, last.from_version, last.to_version, last.reason) == ("force", 2, 3, "smaller")
    assert last.by and last.at


def test_version_that_is_champion_already_is_not_promoted_again(versions):
    promote(NAME, 1, tracking_uri=versions)
    with pytest.raises(UsageError, match="already"):
        promote(NAME, 1, tracking_uri=versions)


def test_rollback_goes_back_one_champion_at_a_time(versions):
    for number in (1, 2, 4):
        promote(NAME, number, tracking_uri=versions)
    assert rollback(NAME, tracking_uri=versions, reason="artefacts at night").to_version == 2
    assert rollback(NAME, tracking_uri=versions).to_version == 1
    assert champion(versions) == 1
    with pytest.raises(UsageError, match="nothing to roll back to"):
        rollback(NAME, tracking_uri=versions)

    moves = history(NAME, tracking_uri=versions)
    assert [(move.action, move.from_version, move.to_version) for move in moves] == [
        ("promote", None, 1),
        ("promote", 1, 2),
        ("promote", 2, 4),
        ("rollback", 4, 2),
        ("rollback", 2, 1),
    ]
    assert moves[3].reason == "artefacts at night"


def test_rollback_undoes_a_move_made_outside_the_gate(versions):
    promote(NAME, 2, tracking_uri=versions)
    connect(versions).set_registered_model_alias(NAME, "champion", "3")
    assert rollback(NAME, tracking_uri=versions).to_version == 2


def test_rollback_to_a_deleted_version_is_refused(versions):
    promote(NAME, 1, tracking_uri=versions)
    promote(NAME, 2, tracking_uri=versions)
    connect(versions).delete_model_version(NAME, "1")
    with pytest.raises(UsageError, match="has been deleted"):
        rollback(NAME, tracking_uri=versions)
    assert champion(versions) == 2


def test_aliases_have_histories_of_their_own(versions):
    promote(NAME, 1, tracking_uri=versions)
    promote(NAME, 3, "night", tracking_uri=versions)
    assert [move.to_version for move in history(NAME, "night", tracking_uri=versions)] == [3]
    assert get_model(NAME, tracking_uri=versions).aliases == {"champion": 1, "night": 3}
    with pytest.raises(UsageError, match="cannot be an alias"):
        promote(NAME, 2, "Champion", tracking_uri=versions)


def test_succession_after_promotion_rollback_and_promotion():
    def move(number, action, to):
        return Move(number=number, at="", by="", action=action, from_version=None, to_version=to, reason=None)

    steps = [("promote", 1), ("promote", 2), ("rollback", 1), ("promote", 3), ("force", 4)]
    assert succession([move(n, action, to) for n, (action, to) in enumerate(steps)]) == [1, 3, 4]
