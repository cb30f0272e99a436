"""Batch norm over two processes with unequal shares, against torch's own over the whole batch in one."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

from vitrail.training.batch_norm import synchronise_batch_norm

SHARES = (slice(0, 3), slice(3, 4))


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)
    ).double()


def samples() -> torch.Tensor:
    return torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = synchronise_batch_norm(build())
    output = model(samples()[SHARES[rank]])
    (output**3).sum().backward()
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
    torch.save(
        {"output": output.detach(), "state": model.state_dict(), "grad": [p.grad for p in model.parameters()]},
        f"{folder}/{rank}.pt",
    )
    dist.destroy_process_group()


@pytest.mark.slow
def test_statistics_and_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    model = build()
    output = model(samples())
    (output**3).sum().backward()
    torch.testing.assert_close(torch.cat([each["output"] for each in found]), output)
    for each in found:
        torch.testing.assert_close(each["state"], dict(model.state_dict()))
        torch.testing.assert_close(each["grad"], [p.grad for p in model.parameters()])
