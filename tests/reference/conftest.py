"""Fixtures of the golden files, and the table of deviations at the end of a run."""

from collections.abc import Callable, Iterator
from pathlib import Path

import golden
import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike

_rows: list[tuple[str, str, float, float]] = []
"""File, quantity, largest deviation, and the largest share of what is allowed."""


@pytest.fixture(scope="session")
def rules() -> golden.Rules:
    """How the weights and inputs of the folder are made; skips where there is no folder."""
    if not golden.FOLDER.is_dir():
        pytest.skip(f"no folder {golden.FOLDER} (VITRAIL_REFERENCE)")
    return golden.Rules.load()


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> Iterator[None]:
    """The goldens were made with two threads; their number changes the order of sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def near() -> Callable[..., None]:
    """Assert that values are within `atol` (absolute) or `rtol` (of the golden) and note the largest deviation.

    Called as `near(path, quantity, ours, golden, atol=..., rtol=...)`; `atol` may be an array. Relative deviations
    are noted where `rtol` is given alone.
    """
    return _near


def _near(
    path: Path, quantity: str, ours: ArrayLike, want: ArrayLike, *, atol: ArrayLike = 0.0, rtol: float = 0.0
) -> None:
    ours, want, atol = (np.asarray(x, np.float64) for x in (ours, want, atol))
    assert ours.shape == want.shape, f"{path.name} {quantity}: shape {ours.shape}, golden {want.shape}"
    assert ours.size, f"{path.name} {quantity}: nothing to compare"
    assert np.array_equal(np.isnan(ours), np.isnan(want)), f"{path.name} {quantity}: NaN in other places"
    deviation = np.nan_to_num(np.abs(ours - want))
    allowed = np.broadcast_to(atol + rtol * np.nan_to_num(np.abs(want)), deviation.shape)
    used = np.divide(deviation, allowed, out=np.where(deviation > 0, np.inf, 0.0), where=allowed > 0)
    worst = np.unravel_index(np.argmax(used), used.shape)
    if rtol and not atol.any():
        scale = np.where(want == 0, 1.0, np.nan_to_num(np.abs(want), nan=1.0))
        _rows.append((path.name, f"{quantity} (relative)", float((deviation / scale).max()), float(used[worst])))
    else:
        _rows.append((path.name, quantity, float(deviation.max()), float(used[worst])))
    assert used[worst] <= 1, (
        f"{path.name} {quantity}: {deviation[worst]:.3g} off at {tuple(map(int, worst))}, {allowed[worst]:.3g} allowed"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the largest deviation of each quantity of each golden, and the largest share of what was allowed."""
    if not _rows:
        return
    worst: dict[tuple[str, str], tuple[float, float]] = {}
    for name, quantity, deviation, used in _rows:
        before = worst.get((name, quantity), (0.0, 0.0))
        worst[name, quantity] = (max(deviation, before[0]), max(used, before[1]))
    terminalreporter.section("largest deviation from each golden, and share of what is allowed")
    for (name, quantity), (deviation, used) in sorted(worst.items()):
        terminalreporter.write_line(f"{name:36} {quantity:46} {deviation:9.2e} {used:8.2%}")
