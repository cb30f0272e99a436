import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from verdicts import give, verdict_on

from vitrail.errors import UsageError
from vitrail.gate.verdict import GateRefusedError
from vitrail.tracking import alias_lock as locking
from vitrail.tracking.alias_lock import AliasBusyError, alias_lock
from vitrail.tracking.environment import connect
from vitrail.tracking.promotion import LostRaceError, Move, history, promote, rollback, succession
from vitrail.tracking.registration import register
from vitrail.tracking.registry import get_model, list_models, resolve, show

NAME = "streets"


@pytest.fixture
def versions(store, make_checkpoint) -> str:
    """A model with versions of mIoU 0.5, 0.6, 0.55 and 0.7; returns the store's address."""
    for seed, miou in enumerate((0.5, 0.6, 0.55, 0.7)):
        register(make_checkpoint(f"c{seed}", seed=seed, miou=miou), name=NAME, tracking_uri=store)
    return store


def champion(store: str, name: str = NAME) -> int | None:
    return get_model(name, tracking_uri=store).aliases.get("champion")


def test_better_version_becomes_champion_and_is_found_by_the_alias(versions):
    assert give(NAME, 1, tracking_uri=versions).from_version is None
    move = give(NAME, 2, tracking_uri=versions)
    assert (move.from_version, move.to_version, move.action) == (1, 2, "promote")
    assert champion(versions) == 2
    assert resolve(f"models:/{NAME}@champion", tracking_uri=versions).number == 2


def test_worse_version_is_refused_with_its_verdict_written_on_it(versions):
    give(NAME, 2, tracking_uri=versions)
    with pytest.raises(GateRefusedError, match=r"gain: mIoU differs by -"):
        give(NAME, 3, tracking_uri=versions)

    assert champion(versions) == 2
    refused = show(NAME, version="3", tracking_uri=versions)
    assert refused.tags["vitrail.gate.verdict"] == "fail"
    report = json.loads(refused.tags["vitrail.gate.report"])
    assert report["champion"]["version"] == 2
    assert report["gain"]["high"] < 0
    files = [file.path for file in connect(versions).list_logged_model_artifacts(refused.model_id, "gate")]
    assert [path.rpartition(".")[2] for path in sorted(files)] == ["html", "json"]
    assert all(path.startswith("gate/champion-") for path in files)
    assert len(history(NAME, tracking_uri=versions)) == 1


def test_force_needs_a_reason_and_is_recorded(versions):
    give(NAME, 2, tracking_uri=versions)
    with pytest.raises(UsageError, match="--reason"):
        give(NAME, 3, force=True, reason="  ", tracking_uri=versions)
    assert give(NAME, 3, force=True, reason="smaller", tracking_uri=versions).action == "force"

    assert champion(versions) == 3
    last = history(NAME, tracking_uri=versions)[-1]
    assert (last.action, last.from_version, last.to_version, last.reason) == ("force", 2, 3, "smaller")
    assert last.by and last.at


def test_version_that_is_champion_already_is_not_promoted_again(versions):
    give(NAME, 1, tracking_uri=versions)
    with pytest.raises(UsageError, match="already"):
        give(NAME, 1, force=True, reason="again", tracking_uri=versions)


def test_verdict_on_another_champion_promotes_nothing(versions):
    give(NAME, 1, tracking_uri=versions)
    verdict = verdict_on(NAME, 3, tracking_uri=versions)
    give(NAME, 4, tracking_uri=versions)
    with pytest.raises(LostRaceError, match="it is at version 4, not at version 1"):
        promote(verdict, tracking_uri=versions)
    assert champion(versions) == 4


def test_of_many_promotions_at_once_one_wins_and_the_others_are_told(versions):
    give(NAME, 1, tracking_uri=versions)
    verdicts = [verdict_on(NAME, number, tracking_uri=versions) for number in (2, 3, 4)] * 2
    start = threading.Barrier(len(verdicts))

    def race(verdict):
        start.wait()
        try:
            return promote(verdict, tracking_uri=versions)
        except (LostRaceError, UsageError) as error:
            return error

    with ThreadPoolExecutor(len(verdicts)) as pool:
        outcomes = list(pool.map(race, verdicts))
    won = [outcome for outcome in outcomes if isinstance(outcome, Move)]
    assert len(won) == 1
    assert champion(versions) == won[0].to_version
    assert [move.to_version for move in history(NAME, tracking_uri=versions)] == [1, won[0].to_version]
    assert [model.name for model in list_models(tracking_uri=versions)] == [NAME]
    assert [model.name for model in connect(versions).search_registered_models()] == [NAME]  # no lock is left


def test_lock_that_was_left_behind_is_waited_for_and_then_taken_over(versions, monkeypatch):
    with alias_lock(NAME, "champion", tracking_uri=versions) as held:
        with (
            pytest.raises(AliasBusyError, match="is being moved by"),
            alias_lock(NAME, "champion", tracking_uri=versions, wait_s=0.3),
        ):
            pass
        with alias_lock(NAME, "night", tracking_uri=versions):  # another alias is another lock
            pass
        assert held.is_held()
        monkeypatch.setattr(locking, "_STALE_S", 0.2)
        with alias_lock(NAME, "champion", tracking_uri=versions) as taken:
            assert taken.is_held()
            assert not held.is_held()


def test_promotion_into_production_copies_the_version_and_moves_that_models_alias(versions):
    move = give(NAME, 2, tracking_uri=versions, into="streets-production")
    assert (move.from_version, move.to_version) == (None, 1)
    assert champion(versions) is None
    assert champion(versions, "streets-production") == 1
    copy, source = (
        show(name, version=number, tracking_uri=versions) for name, number in (("streets-production", "1"), (NAME, "2"))
    )
    assert copy.model_id == source.model_id
    assert copy.tags["vitrail.copied_from"] == "models:/streets/2"
    assert copy.tags["vitrail.gate.verdict"] == "pass"

    give(NAME, 4, tracking_uri=versions, into="streets-production")
    give(NAME, 2, tracking_uri=versions, into="streets-production", force=True, reason="4 is slow")
    assert [version.number for version in get_model("streets-production", tracking_uri=versions).versions] == [2, 1]
    assert champion(versions, "streets-production") == 1
    again = show("streets-production", version="1", tracking_uri=versions)
    assert again.tags["vitrail.gate.verdict"] == "fail"  # the last one, not the one that it was copied with


def test_rollback_goes_back_one_champion_at_a_time(versions):
    for number in (1, 2, 4):
        give(NAME, number, tracking_uri=versions)
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
    give(NAME, 2, tracking_uri=versions)
    connect(versions).set_registered_model_alias(NAME, "champion", "3")
    assert rollback(NAME, tracking_uri=versions).to_version == 2


def test_rollback_to_a_deleted_version_is_refused(versions):
    give(NAME, 1, tracking_uri=versions)
    give(NAME, 2, tracking_uri=versions)
    connect(versions).delete_model_version(NAME, "1")
    with pytest.raises(UsageError, match="has been deleted"):
        rollback(NAME, tracking_uri=versions)
    assert champion(versions) == 2


def test_aliases_have_histories_of_their_own(versions):
    give(NAME, 1, tracking_uri=versions)
    give(NAME, 3, "night", tracking_uri=versions)
    assert [move.to_version for move in history(NAME, "night", tracking_uri=versions)] == [3]
    assert get_model(NAME, tracking_uri=versions).aliases == {"champion": 1, "night": 3}
    with pytest.raises(UsageError, match="cannot be an alias"):
        give(NAME, 2, "Champion", tracking_uri=versions)


def test_succession_after_promotion_rollback_and_promotion():
    def move(number, action, to):
        return Move(number=number, at="", by="", action=action, from_version=None, to_version=to, reason=None)

    steps = [("promote", 1), ("promote", 2), ("rollback", 1), ("promote", 3), ("force", 4)]
    assert succession([move(n, action, to) for n, (action, to) in enumerate(steps)]) == [1, 3, 4]
