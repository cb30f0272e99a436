"""Learning-rate schedules at their corners, and against step-by-step rules of the published trainers."""

import pytest

from vitrail.schedules import ConstantSchedule, CosineSchedule, LinearPolySchedule, PolySchedule

ALL = [PolySchedule, LinearPolySchedule, CosineSchedule, ConstantSchedule]


@pytest.mark.parametrize("kind", ALL)
def test_rate_stays_between_zero_and_the_peak(kind: type[PolySchedule]) -> None:
    schedule = kind(peak_lr=2e-4, warmup_steps=10)
    rates = [schedule.lr(step, 100) for step in range(100)]
    assert all(0 <= rate <= 2e-4 * (1 + 1e-12) for rate in rates)
    assert rates[0] < 1e-8 and max(rates) > 1.7e-4 and rates[99] < 2e-5


@pytest.mark.parametrize("kind", ALL)
def test_no_warmup_starts_at_the_peak(kind: type[PolySchedule]) -> None:
    assert kind(peak_lr=1.0, warmup_steps=0).lr(0, 50) == pytest.approx(1.0)


def test_poly_equals_mmcv_rule() -> None:
    schedule = PolySchedule(peak_lr=6e-5, warmup_steps=1500, warmup_ratio=1e-6, power=1.0)
    for step in (0, 1, 749, 1499, 1500, 80_000, 159_999):
        regular = 6e-5 * (1 - step / 160_000)
        ramp = 1 - (1 - step / 1500) * (1 - 1e-6) if step < 1500 else 1.0
        assert schedule.lr(step, 160_000) == pytest.approx(regular * ramp, rel=1e-12)


def test_linear_poly_equals_mmengine_recursion() -> None:
    total_steps, begin = 60, 10
    rate = 6e-5 * 1e-6
    rates = [rate]
    for step in range(1, total_steps):  # LinearLR, then PolyLR, each scaling the rate before it
        if step < begin:
            factor = (1 - 1e-6) / (begin - 1)
            rate *= 1 + factor / (1e-6 + (step - 1) * factor)
        elif step > begin:
            rate *= 1 - 1 / (total_steps - 1 - step + 1)
        rates.append(rate)
    schedule = LinearPolySchedule(peak_lr=6e-5, warmup_steps=begin)
    assert [schedule.lr(step, total_steps) for step in range(total_steps)] == pytest.approx(rates, rel=1e-9, abs=1e-20)
    assert schedule.lr(begin - 1, total_steps) == pytest.approx(6e-5) == pytest.approx(schedule.lr(begin, total_steps))
    assert schedule.lr(total_steps - 1, total_steps) == 0.0


def test_power_bends_the_decay() -> None:
    assert PolySchedule(peak_lr=1.0, warmup_steps=0, power=0.9).lr(50, 100) == pytest.approx(0.5**0.9)
    schedule = LinearPolySchedule(peak_lr=1.0, warmup_steps=0, power=2.0)
    assert schedule.lr(25, 101) == pytest.approx((1 - 25 / 100) ** 2)


def test_cosine_is_halfway_in_the_middle_and_ends_at_its_minimum() -> None:
    schedule = CosineSchedule(peak_lr=1.0, min_lr=0.1, warmup_steps=20)
    assert schedule.lr(60, 100) == pytest.approx(0.55)
    assert schedule.lr(100, 100) == pytest.approx(0.1)


def test_constant_keeps_its_plateau_until_the_last_share() -> None:
    schedule = ConstantSchedule(peak_lr=1.0, warmup_steps=10, decay_share=0.25)
    assert [schedule.lr(step, 100) for step in (10, 40, 75)] == [1.0, 1.0, 1.0]
    assert schedule.lr(90, 100) == pytest.approx(0.4)
