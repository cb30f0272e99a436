"""Validations beside a run: the same scores, in the checkpoint and in MLflow, while the workers train on."""

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from test_trainer import tiny

from vitrail.checkpoint import ScoreRecord
from vitrail.checkpoint_store import CheckpointStore
from vitrail.cluster.evaluate import evaluate_model
from vitrail.cluster.launch import plan_run
from vitrail.cluster.runtime import InfeasibleError
from vitrail.cluster.trainer import train
from vitrail.evaluation.trained import open_model
from vitrail.tracking.store import default_tracking_uri
from vitrail.training.checkpoint import score_record


@pytest.mark.nightly
@pytest.mark.long
def test_validation_beside_the_run_scores_every_checkpoint(ray_session: None, tiny_data: Path, tmp_path: Path) -> None:
    recipe = tiny(total_steps=6, val_interval=2)
    config = plan_run(recipe, tiny_data, root=tmp_path, name="run", validate_beside=True)
    config = config.model_copy(update={"cpus_per_worker": 1, "keep_newest": 1, "keep_best": 3})
    result = train(config, show=False)
    scored: dict[int, ScoreRecord] = {}
    for stored in CheckpointStore.at(config.checkpoints).checkpoints():
        assert stored.info.scores is not None
        assert not stored.info.validating
        counts = evaluate_model(*open_model(stored.fetch(state=False)), tiny_data)
        assert stored.info.scores == score_record(counts.scores(), len(counts))
        scored[stored.info.step] = stored.info.scores
    assert list(scored) == [2, 4, 6]
    assert result.best_miou == max(scores.mIoU for scores in scored.values())

    client = MlflowClient(default_tracking_uri(tmp_path))
    (run,) = client.search_runs([client.get_experiment_by_name("vitrail").experiment_id])
    logged = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "val/mIoU")}
    assert {step: logged[step] for step in scored} == pytest.approx({step: s.mIoU for step, s in scored.items()})
    assert run.data.metrics["best/val_mIoU"] == pytest.approx(max(logged.values()))
    pictures = [entry.path for entry in client.list_artifacts(run.info.run_id, "images")]
    for step in (0, *scored):
        assert any(f"+step+{step}+" in path for path in pictures), (step, pictures)


def test_workers_that_leave_no_place_for_a_validation_are_refused(
    ray_session: None, tiny_data: Path, tmp_path: Path
) -> None:
    config = plan_run(tiny(), tiny_data, root=tmp_path, workers=3, validate_beside=True)
    with pytest.raises(InfeasibleError, match=r"3 workers .* and 1 like them for validation do not fit"):
        train(config, show=False)
