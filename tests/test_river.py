"""SGD in the toy valley does what theory says: within 5 %, with every schedule."""

import numpy as np
import pytest
from river import PEAK_LR, SCHEDULES, Valley, decay_ends, descend, figure, greedy_lrs

from hf_wsd.segment import Segment

VALLEY = Valley()
LRS = {name: [PEAK_LR * m for m in schedule.multipliers()] for name, schedule in SCHEDULES.items()}


def next_variance(variance, lr):
    return (1 - lr * VALLEY.sharpness) ** 2 * variance + lr**2 * VALLEY.noise**2


@pytest.mark.parametrize("name", LRS)
def test_progress_along_the_river_is_the_sum_of_lr(name):
    track = descend(VALLEY, LRS[name], seeds=64)
    assert VALLEY.progress(track.x[-1]).mean() == pytest.approx(sum(LRS[name]), rel=0.05)


@pytest.mark.parametrize("name", ["WSD, inverse", "cosine"])
def test_hill_loss_follows_the_recursion_of_the_variance(name):
    track = descend(VALLEY, LRS[name], seeds=128)
    assert VALLEY.hill(track.x, track.y).mean() == pytest.approx(VALLEY.hill_losses(LRS[name]).mean(), rel=0.05)


@pytest.mark.parametrize("lr", [0.02, 0.16])
def test_hill_loss_of_a_stable_phase_is_that_of_the_noisy_quadratic(lr):
    track = descend(VALLEY, [lr] * 300, seeds=256)
    hill = VALLEY.hill(track.x[100:], track.y[100:]).mean()
    assert hill == pytest.approx(VALLEY.stationary_hill_loss(lr), rel=0.05)


@pytest.mark.parametrize(("lr", "noise"), [(0.0025, 3.6), (0.005, 7.2)])
def test_hill_loss_at_a_low_lr_is_lr_times_noise_squared_over_four(lr, noise):
    valley = Valley(noise=noise, slope=0.01)
    track = descend(valley, [lr] * 600, seeds=1000)
    assert valley.hill(track.x[300:], track.y[300:]).mean() == pytest.approx(lr * noise**2 / 4, rel=0.05)


def test_greedy_lrs_are_what_a_search_for_the_lowest_next_variance_finds():
    tried, variance, found = np.linspace(1e-4, 0.2, 200_000), 0.3, []
    for _ in range(50):
        found.append(tried[np.argmin(next_variance(variance, tried))])
        variance = next_variance(variance, found[-1])
    greedy = greedy_lrs(0.3, curvature=VALLEY.sharpness, noise=VALLEY.noise, steps=50)
    np.testing.assert_allclose(found, greedy, atol=1e-6)


def test_greedy_decay_out_of_a_stable_phase_starts_at_half_its_lr():
    variance = 2 * VALLEY.stationary_hill_loss(PEAK_LR) / VALLEY.sharpness
    greedy = greedy_lrs(variance, curvature=VALLEY.sharpness, noise=VALLEY.noise, steps=1)
    assert greedy[0] == pytest.approx(PEAK_LR / 2)


def test_inverse_shape_is_the_greedy_curve():
    greedy = greedy_lrs(0.3, curvature=VALLEY.sharpness, noise=VALLEY.noise, steps=101) / PEAK_LR
    inverse = Segment.decay(100, shape="inverse", start=greedy[0], end=greedy[-1]).multipliers(0, 100)
    np.testing.assert_allclose(inverse, greedy[:-1], rtol=1e-12)


def test_inverse_decay_from_the_peak_itself_ends_within_5_percent_of_the_best():
    assert decay_ends(VALLEY)["inverse"] == pytest.approx(1, rel=0.05)


def test_no_shape_ends_lower_than_the_greedy_lrs():
    assert min(decay_ends(VALLEY).values()) == 1


@pytest.mark.slow
def test_picture_is_drawn(tmp_path):
    figure(VALLEY).savefig(tmp_path / "river.png")
    assert (tmp_path / "river.png").stat().st_size > 50_000
