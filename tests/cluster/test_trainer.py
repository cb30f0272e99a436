"""Training runs on real Ray workers: exact continuation, identity, and failures that say what happened."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from vitrail.checkpoint import CHECKPOINTS, file_sha256
from vitrail.cluster.identity import RUN_FILE, RunExistsError, claim_folder
from vitrail.cluster.launch import plan_run
from vitrail.cluster.runtime import InfeasibleError
from vitrail.cluster.trainer import train
from vitrail.config import Recipe, RunConfig
from vitrail.data.shards import DamagedShardError
from vitrail.errors import UsageError
from vitrail.models.segmentor import Segmentor
from vitrail.models.weights import export_weights
from vitrail.overrides import override
from vitrail.recipes import get_recipe
from vitrail.training.checkpoint import load_state, load_weights


def tiny(**changes: object) -> Recipe:
    values = {"total_steps": 4, "val_interval": 2, "global_batch": 4, "schedule.warmup_steps": 1}
    values |= {"transforms.scale": [256, 64], "transforms.crop_size": 64, "model.backbone.img_size": 64, **changes}
    assignments = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return override(get_recipe("upernet_vit-nano_mln_128x128_1k"), assignments)


@pytest.mark.nightly
@pytest.mark.long
def test_resumed_run_ends_with_the_weights_of_an_unbroken_one(
    ray_session: None, tiny_data: Path, tmp_path: Path
) -> None:
    start = tmp_path / "start.safetensors"
    export_weights(Segmentor(tiny().model), start, format="timm")
    recipe = tiny(pretrained=str(start))
    config = plan_run(recipe, tiny_data, root=tmp_path, name="unbroken", workers=2).model_copy(
        update={"tracking": None}
    )
    unbroken = train(config, show=False)
    assert unbroken.last_info.start is not None
    assert unbroken.last_info.start["sha256"] == file_sha256(start)
    assert unbroken.last_info.start["backbone"] == 1.0

    # The other stream too, whose batches are the same.
    broken = config.model_copy(update={"name": "broken", "folder": str(tmp_path / "broken"), "ingest": "ray-data"})
    claim_folder(broken, resume=False)
    shutil.copytree(
        Path(config.folder) / CHECKPOINTS / "step_000002", tmp_path / "broken" / CHECKPOINTS / "step_000002"
    )
    resumed = train(broken, resume=True, show=False)

    assert resumed.last_info.step == unbroken.last_info.step == 4
    expected, found = load_weights(unbroken.last), load_weights(resumed.last)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert resumed.last_info.scores == unbroken.last_info.scores
    assert resumed.last_info.start == unbroken.last_info.start
    assert load_state(resumed.last)["step"] == 4


@pytest.mark.slow
def test_damaged_shard_stops_training_with_its_name(ray_session: None, tiny_data: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "data"
    shutil.copytree(tiny_data, damaged)
    shard = next(damaged.glob("training-*.arrow"))
    data = bytearray(shard.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    shard.write_bytes(data)
    config = plan_run(tiny(), damaged, root=tmp_path).model_copy(update={"tracking": None})
    with pytest.raises(DamagedShardError, match=shard.name):
        train(config, show=False)


def test_more_workers_than_cpus_are_refused_at_once(ray_session: None, tiny_data: Path, tmp_path: Path) -> None:
    config = plan_run(tiny(), tiny_data, root=tmp_path, workers=4)
    with pytest.raises(InfeasibleError, match="4 workers with 1 CPUs"):
        train(config, show=False)


def test_unusable_start_is_refused_before_the_folder_is_taken(
    ray_session: None, tiny_data: Path, tmp_path: Path
) -> None:
    wide = override(tiny(), ["model.backbone.embed_dim=192"])
    export_weights(Segmentor(wide.model), tmp_path / "wide.safetensors", format="timm")
    config = plan_run(tiny(pretrained=str(tmp_path / "wide.safetensors")), tiny_data, root=tmp_path)
    with pytest.raises(UsageError, match="different architectures"):
        train(config, show=False)
    assert not Path(config.folder).exists()


def test_workers_that_leave_no_cpu_for_ray_data_are_refused(ray_session: None, tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match="and 1 CPU for Ray Data do not fit"):
        plan_run(tiny(global_batch=6), tiny_data, root=tmp_path, workers=3, ingest="ray-data")


def test_more_workers_than_samples_in_a_batch_are_refused(ray_session: None, tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="global_batch=4 is not enough for 5 workers"):
        plan_run(tiny(), tiny_data, root=tmp_path, workers=5)


def run_config(folder: Path, **changes: object) -> RunConfig:
    values = {"name": "a", "recipe": tiny(), "data": "/data", "data_fingerprint": "f", "folder": str(folder)}
    return RunConfig.model_validate({**values, **changes})


def test_folder_of_another_run_is_refused_with_the_difference(tmp_path: Path) -> None:
    claim_folder(run_config(tmp_path), resume=False)
    other = run_config(tmp_path, recipe=tiny(**{"schedule.peak_lr": 0.5}), seed=3)
    with pytest.raises(
        RunExistsError, match=r"schedule.peak_lr is 0.001 there and 0.5 here; seed is 0 there and 3 here"
    ):
        claim_folder(other, resume=True)


def test_existing_run_is_continued_only_when_asked(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    claim_folder(config, resume=False)
    with pytest.raises(RunExistsError, match="--resume"):
        claim_folder(config, resume=False)
    claim_folder(config.model_copy(update={"workers": 4}), resume=True)
    assert (tmp_path / RUN_FILE).is_file()


def test_run_begun_before_a_recipe_had_a_field_is_continued(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    claim_folder(config, resume=False)
    written = json.loads((tmp_path / RUN_FILE).read_text())
    del written["identity"]["recipe"]["ms_flip"]
    (tmp_path / RUN_FILE).write_text(json.dumps(written))
    claim_folder(config, resume=True)


def test_unwritable_run_folder_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="cannot write the run's folder"):
        claim_folder(run_config(tmp_path / "file" / "run"), resume=False)
