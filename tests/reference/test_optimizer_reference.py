"""Weight decay of every parameter, and the learning rate of both generations of schedules."""

import json
from pathlib import Path

import pytest
import torch
from golden import files
from reference_models import recipe_of

from vitrail.models.naming import to_mmseg
from vitrail.models.segmentor import Segmentor
from vitrail.schedules import LinearPolySchedule, PolySchedule
from vitrail.training.optimizer import build_optimizer


@pytest.mark.parametrize("path", files("optim_groups.json"))
def test_groups_equal_mmsegmentation(path: Path) -> None:
    for arch, want in json.loads(path.read_text()).items():
        recipe = recipe_of(arch)
        with torch.device("meta"):
            model = Segmentor(recipe.model)
        optimizer = build_optimizer(model, recipe.optimizer, lr=recipe.schedule.peak_lr)
        assert type(optimizer).__name__ == want["optimizer"]
        for name in ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize"):
            value = optimizer.defaults[name]
            assert (list(value) if isinstance(value, tuple) else value) == want["defaults"][name]
        names = {id(p): to_mmseg(name) for name, p in model.named_parameters()}
        ours = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
        assert ours == {name: (lr, decay) for name, lr, decay in want["groups"]}
        assert {name for name, (_, decay) in ours.items() if decay == 0} == set(want["no_decay"])


@pytest.mark.parametrize("path", files("schedules.json"))
def test_learning_rates_equal_mmengine_and_mmcv(path: Path) -> None:
    for steps, want in json.loads(path.read_text()).items():
        total_steps = int(steps)
        warmup, poly = want["config"]
        assert (poly["begin"], poly["end"], poly["eta_min"]) == (warmup["end"], total_steps, 0.0)
        shared = {
            "peak_lr": max(lr for _, lr in want["mmengine"]),
            "warmup_steps": warmup["end"],
            "warmup_ratio": warmup["start_factor"],
            "power": poly["power"],
        }
        for schedule, values in [
            (LinearPolySchedule(**shared), want["mmengine"]),
            (PolySchedule(**shared), want["mmcv_1.7.2"]),
        ]:
            for step, lr in values:
                assert schedule.lr(step, total_steps) == pytest.approx(lr, rel=1e-12, abs=1e-21), (schedule.kind, step)
