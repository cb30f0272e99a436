"""AdamW's groups."""

import pytest
import torch
from torch import nn

from vitrail.config import OptimizerConfig
from vitrail.models.segmentor import Segmentor
from vitrail.recipes import get_recipe
from vitrail.training.optimizer import build_optimizer, set_lr


def nano() -> Segmentor:
    return Segmentor(get_recipe("upernet_vit-nano_ln_mln_128x128_1k").model)


def test_only_position_embedding_and_class_token_are_not_decayed() -> None:
    model = nano()
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.05), lr=1e-3)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    kept = {name for name, p in model.named_parameters() if decay[id(p)] == 0}
    assert kept == {"backbone.cls_token", "backbone.pos_embed"}
    assert len(decay) == len(list(model.parameters())) == sum(len(g["params"]) for g in optimizer.param_groups)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.05}


def test_settings_reach_adamw() -> None:
    config = OptimizerConfig(weight_decay=0.1, betas=(0.8, 0.9), eps=1e-6)
    optimizer = build_optimizer(nano(), config, lr=0.25)
    assert {(g["lr"], g["betas"], g["eps"]) for g in optimizer.param_groups} == {(0.25, (0.8, 0.9), 1e-6)}


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    optimizer = build_optimizer(model, OptimizerConfig(), lr=0.1)
    assert [p is model.bias for group in optimizer.param_groups for p in group["params"]] == [True]


def test_a_step_decays_apart_from_the_gradient() -> None:
    model = nn.Module()
    model.weight, model.pos_embed = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.5), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros(3)
    optimizer.step()
    assert model.weight.tolist() == pytest.approx([0.95] * 3)
    assert model.pos_embed.tolist() == [1.0] * 3


def test_layer_decay_slows_each_block_from_the_heads_to_the_embeddings() -> None:
    model = nano()
    optimizer = build_optimizer(model, OptimizerConfig(layer_decay=0.5), lr=0.1)
    set_lr(optimizer, 0.2)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: rates[id(p)] for name, p in model.named_parameters()}
    # Eight blocks between the embeddings and what learns at the full rate, which the final norm does too.
    assert by_name["decode_head.conv_seg.weight"] == by_name["backbone.norm.weight"] == 0.2
    assert by_name["backbone.blocks.7.attn.qkv.weight"] == pytest.approx(0.1)
    assert by_name["backbone.blocks.0.attn.qkv.weight"] == pytest.approx(0.2 / 2**8)
    assert by_name["backbone.pos_embed"] == by_name["backbone.patch_embed.proj.weight"] == pytest.approx(0.2 / 2**9)
    assert len(rates) == len(list(model.parameters()))


def test_without_layer_decay_there_are_the_two_groups_of_older_checkpoints() -> None:
    assert len(build_optimizer(nano(), OptimizerConfig(), lr=0.1).param_groups) == 2
