"""Fits on data from known laws with noise, and on real runs."""

import csv
import re
import time
from dataclasses import replace
from itertools import groupby
from math import inf, nan
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from scipy.optimize import least_squares

from hf_wsd.errors import FitError
from hf_wsd.law import ScalingLaw
from hf_wsd.optimum import find_optimum
from hf_wsd.points import Point
from hf_wsd.scaling import fit_law
from hf_wsd.scaling_plots import law_figure

DECAYED_RUNS = Path(__file__).resolve().parents[2] / "shared" / "data" / "decayed_runs.csv"
OF_TOKENS = ScalingLaw(irreducible=2.0, data_scale=200.0, data_exponent=0.3)
OF_BOTH = ScalingLaw(irreducible=1.8, data_scale=2000, data_exponent=0.36, model_scale=400, model_exponent=0.34)
BUDGETS = [10**8 * 2**i for i in range(4)]


def family(law=OF_TOKENS, budgets=BUDGETS, *, noise=0.0, seed=0, **changes):
    errors = noise * np.random.default_rng(seed).standard_normal(len(budgets))
    return [Point(tokens=d, loss=law(d) + error, **changes) for d, error in zip(budgets, errors, strict=True)]


def ladder(sizes, per_parameter=(5, 10, 20, 40), *, noise=0.0, seed=0):
    pairs = [(n, n * ratio) for n in sizes for ratio in per_parameter]
    errors = noise * np.random.default_rng(seed).standard_normal(len(pairs))
    return [
        Point(tokens=d, parameters=n, loss=OF_BOTH(d, n) + error) for (n, d), error in zip(pairs, errors, strict=True)
    ]


# --- the law ---


@pytest.mark.parametrize("points", [family(), ladder([10**7, 3 * 10**7, 10**8])], ids=["tokens", "sizes and tokens"])
def test_law_without_noise_is_found(points):
    law = OF_BOTH if points[0].parameters else OF_TOKENS
    found = fit_law(points, noise=0.001).law
    assert list(found.to_dict().values()) == pytest.approx(list(law.to_dict().values()), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_fit_is_at_least_as_good_as_scipys_from_many_starts(seed):
    points = family(noise=0.002, seed=seed)
    tokens, losses = (np.array([getattr(p, name) for p in points]) for name in ("tokens", "loss"))

    def residuals(theta):  # E, the term of the data at its mean, and beta
        return np.log(losses / (theta[0] + theta[1] * (tokens / 2e8) ** -theta[2]))

    def of(start):
        edges = ([0, 0, 0.01], [inf, inf, 2])
        return (
            2 * least_squares(residuals, start, bounds=edges, loss="huber", f_scale=1e-3, xtol=1e-14, ftol=1e-14).cost
        )

    best = min(of((e, 2.6 - e, beta)) for e in (0.5, 1.5, 2.3) for beta in (0.1, 0.3, 0.9))
    assert fit_law(points).data.fit.objective[0] <= best * (1 + 1e-6) + 1e-15


@pytest.mark.slow
def test_equal_data_gives_equal_numbers():
    first, second = (fit_law(family(noise=0.002), noise=0.001).predict(10**10) for _ in range(2))
    assert first == second


@pytest.mark.slow
def test_one_bad_run_of_many_moves_the_law_little():
    points = family(budgets=[10**8 * 2**i for i in range(8)])
    points[3] = replace(points[3], loss=points[3].loss + 0.2)
    assert fit_law(points).predict(10**11).loss == pytest.approx(OF_TOKENS(10**11), abs=0.01)


# --- what is refused, and what is said ---


def mixed(name, *values):
    return [replace(point, **{name: values[i % 2]}) for i, point in enumerate(family())]


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (family()[:2], r"at least 3 budgets, and there are 2 \(100M, 200M\)"),
        (mixed("decay_fraction", 0.1, 0.2), r"different decay_fraction \(0.1, 0.2\).*--where decay_fraction=0.1"),
        (mixed("decay_type", "linear", "1-sqrt"), r"different decay_type \(1-sqrt, linear\)"),
        (mixed("peak_lr", 0.001, 0.002), "different peak_lr"),
        (mixed("evaluation", "8-ab", "8-cd"), "different evaluation"),
        ([replace(point, loss=nan) for point in family()], "there are 0"),
        (ladder([10**7, 10**8], (5, 10)), "at least 5 models, and there are 4"),
        ([replace(point, loss=1e300) for point in family()], "without a loss between 0 and 1e.06"),
        (family(schedule="wsd", decay_fraction=0.0), "4 of 4 models have no decay .*--allow decay_fraction"),
        (family(schedule="wsd", decay_steps=0), "4 of 4 models have no decay"),
    ],
)
def test_models_that_no_law_describes_are_refused(points, message):
    with pytest.raises(FitError, match=message):
        fit_law(points)


@pytest.mark.slow
def test_difference_that_is_allowed_is_mixed():
    assert fit_law(mixed("peak_lr", 0.001, 0.002), allow=["peak_lr"]).law.data_exponent == pytest.approx(0.3, rel=1e-3)


@pytest.mark.slow
def test_peak_lr_may_differ_between_sizes():
    points = [replace(point, peak_lr=1e5 / point.parameters) for point in ladder([10**7, 3 * 10**7, 10**8])]
    assert fit_law(points).law.model_exponent == pytest.approx(0.34, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("budgets", [BUDGETS[:3], [10**8, 2 * 10**8, 4 * 10**8, 6 * 10**8]], ids=["three", "span 6"])
def test_exponents_are_withheld_where_they_are_not_known(budgets):
    fit = fit_law(family(budgets=budgets), noise=0.001)
    assert (fit.to_dict()["law"], "D^" in " ".join(fit.statements())) == (None, False)
    assert fit.predict(10**9).loss == pytest.approx(OF_TOKENS(10**9), abs=0.001)


@pytest.mark.slow
def test_exponent_that_losses_do_not_show_is_withheld():
    points = [replace(point, loss=3 + i / 10) for i, point in enumerate(family())]
    assert fit_law(points, noise=0.001).withheld == "models that do not show beta"


@pytest.mark.slow
def test_models_without_a_loss_are_left_out_and_said():
    points = [replace(point, run=f"RUN/_branches/{i}") for i, point in enumerate(family())]
    points += [Point(tokens=10**10, loss=nan, run="RUN/_branches/9-10")]
    assert fit_law(points).warnings == (
        "Left out: 1 of 5 models without a loss between 0 and 1e+06 (unfinished or diverged): 9-10 (10B tokens)",
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (ladder([10**7, 11 * 10**6, 12 * 10**6]), r"sizes over a span of 1\.2 \(it takes 2\)"),
        (ladder([10**7 * 2**i for i in range(5)], (20,)), "sizes that all have the same tokens per parameter"),
    ],
    ids=["near sizes", "one ratio"],
)
def test_exponents_of_sizes_that_do_not_tell_them_are_withheld(points, reason):
    assert re.match(reason, fit_law(points, noise=0.001).withheld)


@pytest.mark.slow
def test_largest_is_not_predicted_from_models_of_one_other_size():
    points = [*family(OF_TOKENS, parameters=10**7), Point(tokens=10**9, parameters=10**8, loss=3.0)]
    assert fit_law(points).left_out is None


@pytest.mark.slow
def test_mixture_that_is_allowed_is_said():
    warnings = fit_law(mixed("peak_lr", 0.001, 0.002), allow=["peak_lr"]).warnings
    assert warnings == ("Mixed on purpose: models with different peak_lr (0.001, 0.002)",)


@pytest.mark.slow
def test_noise_that_residuals_belie_is_said():
    points = family(budgets=[10**8 * 2**i for i in range(6)], noise=0.02)
    assert "as with a noise of 0.0" in str(fit_law(points, noise=0.001).warnings)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.001, 0.02])
def test_noise_of_residuals_is_that_of_the_runs(noise):
    budgets = [int(10**8 * 2 ** (i / 8)) for i in range(60)]
    assert fit_law(family(budgets=budgets, noise=noise)).noise == pytest.approx(noise, rel=0.2)


@pytest.mark.slow
def test_short_decays_are_flagged():
    points = [replace(point, decay_steps=20 * 2**i) for i, point in enumerate(family())]
    assert "2 of 4 models have a decay of fewer than 50 steps (down to 20)" in str(fit_law(points).warnings)


@pytest.mark.slow
def test_models_that_are_equal_are_said():
    points = family(noise=0.001)
    assert "1 of 5 models are equal to another" in str(fit_law([*points, points[0]]).warnings)


@pytest.mark.slow
def test_loss_that_does_not_fall_is_said():
    points = [replace(point, loss=3 + i / 10) for i, point in enumerate(family())]
    assert "The loss does not fall with tokens: 3.0000 at 100M, 3.3000 at 800M" in str(fit_law(points).warnings)


@pytest.mark.slow
def test_exponents_are_withheld_where_the_loss_does_not_level_off():
    fit = fit_law([replace(point, loss=4 - 0.3 * i) for i, point in enumerate(family())], noise=0.001)
    assert (fit.law.irreducible, fit.withheld) == (0, "models that do not show E")


@pytest.mark.slow
def test_interval_grows_with_the_scale_of_the_losses():
    """Perplexities are a hundred times as large: so are their intervals."""
    points = family(noise=0.003, budgets=[10**8 * 2**i for i in range(6)])
    near, far = (
        fit_law([replace(point, loss=scale * point.loss) for point in points]).predict(10**10) for scale in (1, 100)
    )
    assert (far.high - far.low) / (near.high - near.low) == pytest.approx(100, rel=0.01)


@pytest.mark.slow
def test_three_models_of_unknown_noise_have_no_interval():
    fit = fit_law(family(budgets=BUDGETS[:3]))
    assert (fit.predict(10**9).low, "give --noise" in fit.noise_from) == (None, True)


# --- the best use of compute ---


@pytest.mark.slow
def test_optimum_is_the_lowest_loss_of_all_sizes():
    best = find_optimum(fit_law(ladder([10**7, 3 * 10**7, 10**8])), 1e19)
    others = [OF_BOTH(1e19 / 6 / n, n) for n in np.geomspace(1e6, 1e10, 2000)]
    assert best.loss == pytest.approx(min(others), abs=1e-4)
    assert 6 * best.parameters * best.tokens == pytest.approx(1e19)


@pytest.mark.slow
def test_optimum_needs_exponents_that_are_known():
    with pytest.raises(FitError, match=r"not known from 2 sizes \(it takes 3\)"):
        find_optimum(fit_law(ladder([10**7, 10**8])), 1e19)


@pytest.mark.slow
def test_best_size_is_not_drawn_where_exponents_are_withheld():
    assert len(law_figure(fit_law(ladder([10**7, 10**8]), noise=0.001)).axes) == 1


@pytest.mark.slow
def test_optimum_needs_several_sizes():
    with pytest.raises(FitError, match="these have one"):
        find_optimum(fit_law(family()), 1e19)


# --- how often intervals hold ---

LAWS = [(2.5, 1.0, 0.3), (1.7, 1.5, 0.15), (2.6, 0.6, 0.5), (2.0, 1.2, 0.25)]


@pytest.mark.slow
@pytest.mark.parametrize("given", [True, False], ids=["noise given", "noise of the residuals"])
def test_ninety_percent_intervals_hold_a_further_run_87_to_93_times_in_a_hundred(given):
    """1,000 fits: four laws, 4 to 6 budgets, noise of 0.001 and 0.003, predictions 2x and 4x ahead; E and beta."""
    rng, held, known = np.random.default_rng(20), [], []
    for number in range(1000):
        e, b, beta = LAWS[number % 4]
        law = ScalingLaw(irreducible=e, data_scale=b * 1e8**beta, data_exponent=beta)
        noise, budgets = (0.001, 0.003)[number // 4 % 2], [10**8 * 2**i for i in range(4 + number // 8 % 3)]
        losses = [law(d) + noise * rng.standard_normal() for d in budgets]
        points = [Point(tokens=d, loss=loss) for d, loss in zip(budgets, losses, strict=True)]
        ahead = (2, 4)[number // 24 % 2] * budgets[-1]
        fit = fit_law(points, noise=noise if given else None)
        held.append(fit.predict(ahead).holds(law(ahead) + noise * rng.standard_normal()))
        if not fit.withheld:
            known.append([inside(fit, name, getattr(law, name)) for name in ("irreducible", "data_exponent")])
    assert 0.87 <= np.mean(held) <= 0.93
    assert all(0.87 <= share <= 0.93 for share in np.mean(known, axis=0))


def inside(fit, name, truth):
    low, high = fit.spread(getattr(law, name) for law in fit.simulated)
    return low <= truth <= high


@pytest.mark.slow
def test_two_hundred_runs_with_a_thousand_simulations_are_fitted_in_five_seconds():
    points = ladder(list(np.geomspace(1e7, 1e9, 20).astype(int)), tuple(np.geomspace(5, 200, 10)), noise=0.005)
    begin = time.process_time()
    assert len(fit_law(points).simulated) >= 1000
    assert time.process_time() - begin < 5


# --- real runs ---


def groups_of_four_budgets():
    names = ("params", "dataset", "scheduler", "decay_type", "decay_fraction", "wsd_final_lr_scale", "peak_lr")
    with DECAYED_RUNS.open() as file:
        rows = sorted(csv.DictReader(file), key=lambda row: [row[name] for name in names])
    for key, group in groupby(rows, key=lambda row: [row[name] for name in names]):
        points = [Point(tokens=int(row["tokens"]), loss=float(row["final_val_loss_full"])) for row in group]
        if key[2] == "wsd" and len({point.tokens for point in points}) == 4:
            yield points


@pytest.mark.skipif(not DECAYED_RUNS.exists(), reason="no real runs here")
def test_largest_of_real_wsd_runs_is_predicted_from_the_others():
    checks = [fit_law(points).left_out for points in groups_of_four_budgets()]
    errors = [abs(check.error) for check in checks]
    assert (len(errors), median(errors) <= 0.003, max(errors) <= 0.006) == (12, True, True)
