"""The two laws of a loss curve against their formulas written out, and against real runs that they have not seen."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from hf_wsd.annealing_law import AnnealingFit, AnnealingLaw
from hf_wsd.builders import wsd, wsd_s
from hf_wsd.errors import FitError
from hf_wsd.loss_curves import Curve, read_curves
from hf_wsd.multi_power_law import MultiPowerFit, MultiPowerLaw
from hf_wsd.schedule import Schedule
from hf_wsd.segment import Phase, Segment

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "loss_curves.csv"
WARMUP, PEAK = 2160, 3e-4  # of the public curves

MULTI_POWER = MultiPowerLaw(
    irreducible=2.65,
    data_scale=0.6,
    data_exponent=0.45,
    drop_scale=440,
    drop_rate=2.1,
    drop_exponent=0.6,
    lr_exponent=0.65,
)
ANNEALING = AnnealingLaw(irreducible=2.65, data_scale=0.6, data_exponent=0.45, drop_scale=0.5)


def multi_power_by_the_formula(law, lrs, step, warmup):
    lrs = lrs[:step]
    gained = 0.0
    for k in range(warmup + 1, len(lrs)):
        since = lrs[k:].sum()
        gained += (lrs[k - 1] - lrs[k]) * (
            1 - (1 + law.drop_rate * lrs[k] ** -law.lr_exponent * since) ** -law.drop_exponent
        )
    return law.irreducible + law.data_scale * lrs.sum() ** -law.data_exponent - law.drop_scale * gained


def annealing_by_the_formula(law, lrs, step, warmup):
    lrs = np.concatenate([np.full(warmup, lrs[warmup]), lrs[warmup:]])[:step]
    momentum = area = 0.0
    for before, lr in pairwise(lrs):
        momentum = law.memory * momentum + before - lr
        area += momentum
    return law.irreducible + law.data_scale * lrs.sum() ** -law.data_exponent - law.drop_scale * area


def lrs_of(schedule):
    return np.array(schedule.multipliers()) * PEAK


SCHEDULES = {
    "1-sqrt": wsd(3000, num_warmup_steps=100, num_decay_steps=600),
    "inverse": wsd(3000, num_warmup_steps=100, num_decay_steps=600, decay_type="inverse", min_lr_ratio=0.1),
    "line": wsd_s(cycle_ends=[1000, 2000, 3000], num_warmup_steps=100, num_decay_steps=200),
}


slow = pytest.mark.slow


@pytest.mark.parametrize("name", [pytest.param("1-sqrt", marks=slow), pytest.param("inverse", marks=slow), "line"])
def test_multi_power_law_is_its_formula(name):
    lrs, steps = lrs_of(SCHEDULES[name]), np.array([900, 1000, 1900, 2450, 2700, 3000])
    exact = [multi_power_by_the_formula(MULTI_POWER, lrs, step, 100) for step in steps]
    assert np.abs(MULTI_POWER(lrs, steps, warmup=100) - exact).max() < 1e-4  # falls of the lr are lumped


def test_annealing_law_is_its_formula():
    lrs, steps = lrs_of(SCHEDULES["line"]), np.array([900, 1000, 2050, 3000])
    exact = [annealing_by_the_formula(ANNEALING, lrs, step, 100) for step in steps]
    assert ANNEALING(lrs, steps, warmup=100) == pytest.approx(exact, rel=1e-12)


def family(law, *, decays=(0.5, 1.0)):
    """A trunk of 10,000 steps and a branch of 20 % off each fork point, as the law says."""
    trunk, curves = wsd(num_warmup_steps=200, num_decay_steps=0), []
    schedules = [trunk.fork(10_000, decay_steps=1)] + [
        trunk.fork(round(10_000 * part), decay_steps=round(2_000 * part)) for part in decays
    ]
    for schedule in schedules:
        fork, end = schedule.checkpoint_steps()
        steps = np.arange(500, 10_001, 250) if schedule is schedules[0] else np.linspace(fork, end, 6)[1:].astype(int)
        lrs = lrs_of(schedule)
        decays = () if schedule is schedules[0] else ((fork, end),)
        losses = law(lrs, steps, warmup=200)
        curves.append(Curve(name=str(end), lrs=lrs, steps=steps, losses=losses, warmup=200, decays=decays))
    return curves


def test_the_annealing_fit_finds_the_law_that_made_the_losses():
    found = AnnealingFit(family(ANNEALING))
    assert found.law.drop_scale == pytest.approx(0.5, rel=1e-6)


@slow
def test_the_multi_power_fit_is_within_two_thousandths_of_the_law_that_made_the_losses():
    found = MultiPowerFit(family(MULTI_POWER))  # its pull to the middle of (0, 1) costs that much: beta is 0.6 here
    assert np.abs(found.fitted - found.losses).max() < 0.002


@slow
def test_a_fit_is_deterministic():
    curves = family(ANNEALING)
    assert AnnealingFit(curves).law == AnnealingFit(curves).law


def test_a_curve_without_the_lr_of_each_update_is_refused():
    with pytest.raises(FitError, match="2 losses at 2 rising steps need the lr of each update"):
        Curve(name="a", lrs=np.ones(5), steps=np.array([5, 6]), losses=np.ones(2))


def test_a_table_with_other_columns_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("step,loss\n1,2\n")
    with pytest.raises(FitError, match="needs the columns step, lr and loss: it has no lr"):
        read_curves([tmp_path / "a.csv"])


def test_curves_are_read_from_any_kind_of_table(tmp_path):
    rows = [{"step": 2, "lr": 1.0, "loss": 4.0}, {"step": 4, "lr": 0.5, "loss": 3.0}, {"step": 5, "lr": 0.5}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.csv").write_text("step;lr;loss\n2;1;4\n4;0.5;3\n5;0.5;\n")
    for file in ("a.jsonl", "a.csv"):
        (curve,) = read_curves([tmp_path / file])
        assert (curve.name, curve.steps.tolist(), curve.losses.tolist(), len(curve.lrs)) == ("a", [2, 4], [4, 3], 5)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["2176000000,0.1,3", "2304000000,0.1,3"], "a step is the number of updates done.*tokens"),
        (["2,0.1,3", "2,0.1,3.1"], "a: step 2 is there twice"),
        (["2.5,0.1,3"], "step is a whole number"),
    ],
)
def test_steps_that_are_none_are_refused(tmp_path, rows, message):
    (tmp_path / "a.csv").write_text("\n".join(["step,lr,loss", *rows]))
    with pytest.raises(FitError, match=message):
        read_curves([tmp_path / "a.csv"])


def test_curve_that_ends_in_its_warm_up_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("step,lr,loss\n2,0.1,3\n4,0.1,2.9\n")
    with pytest.raises(FitError, match="a ends at step 4, in a warm-up of 10 steps: lower --warmup"):
        read_curves([tmp_path / "a.csv"], warmup=10)


def test_columns_of_numbers_that_go_on_name_no_curves(tmp_path):
    rows = [f"{step}.0,{step * 1000},0.1,{4 - step / 10},x" for step in (1, 2, 3, 4)]
    (tmp_path / "a.csv").write_text("\n".join(["step,tokens,lr,loss,run", *rows]))
    (curve,) = read_curves([tmp_path / "a.csv"])
    assert (curve.name, curve.steps.tolist()) == ("x", [1, 2, 3, 4])


def test_sizes_name_curves_where_their_steps_are_the_same(tmp_path):
    rows = [f"{size},{step},0.1,{4 - step / 10}" for size in (25, 100) for step in (1, 2, 3)]
    (tmp_path / "a.csv").write_text("\n".join(["size,step,lr,loss", *rows]))
    assert [curve.name for curve in read_curves([tmp_path / "a.csv"])] == ["25", "100"]


# --- real runs: 25M and 100M parameters, nine schedules each ---


def schedule_of(name):
    """The schedule of a public curve; its lr column gives only every 128th update."""
    start = (Segment(phase=Phase.WARMUP, steps=WARMUP, start=0.0, shape="linear"),)
    kind, _, rest = name.partition("_")
    if kind == "constant":
        return Schedule((*start, Segment(phase=Phase.STABLE, steps=int(rest) - WARMUP)))
    if kind == "wsdcon":
        drop = Segment(phase=Phase.DECAY, steps=16_000, start=int(rest) / 30, end=int(rest) / 30)
        return Schedule((*start, Segment(phase=Phase.STABLE, steps=8000 - WARMUP), drop))
    if kind == "cosine":
        return Schedule((*start, Segment.decay(int(rest) - WARMUP, shape="cosine", end=0.1)))
    shape = {"wsd": "exponential", "wsdld": "linear"}[kind]
    return Schedule(
        (*start, Segment(phase=Phase.STABLE, steps=20_000 - WARMUP), Segment.decay(4000, shape=shape, end=0.1))
    )


@pytest.fixture(scope="module")
def real():
    if not DATA.exists():
        pytest.skip("no reference data beside this checkout")
    curves = {}
    for measured in read_curves([DATA], warmup=WARMUP):
        lrs = lrs_of(schedule_of(measured.name.partition("/")[2]))
        curves[measured.name] = Curve(
            name=measured.name, lrs=lrs, steps=measured.steps, losses=measured.losses, warmup=WARMUP
        )
    return curves


def errors(law, curves):
    """Mean absolute error, R2 and the errors at the ends on curves."""
    off = [law(curve.lrs, curve.steps, warmup=WARMUP) - curve.losses for curve in curves]
    all_off, losses = np.concatenate(off), np.concatenate([curve.losses for curve in curves])
    r2 = 1 - np.sum(all_off**2) / np.sum((losses - losses.mean()) ** 2)
    return np.abs(all_off).mean(), r2, [round(float(o[-1]), 4) for o in off]


HELD_OUT = ("wsd_20000_24000", "wsdld_20000_24000")
FITTED = [
    (f"constant_{constant}", f"cosine_{cosine}", f"wsdcon_{two_stage}")
    for constant, cosine in ((24_000, 24_000), (72_000, 72_000), (72_000, 24_000), (24_000, 72_000))
    for two_stage in (3, 9, 18)
]


@slow
@pytest.mark.parametrize("size", [25, 100])
@pytest.mark.parametrize("fitted", FITTED, ids="+".join)
def test_the_multi_power_law_predicts_wsd_from_constant_cosine_and_one_two_stage_run(real, size, fitted):
    known = [real[f"{size}/{name}"].thinned() for name in fitted]
    unseen = [real[f"{size}/{name}"] for name in HELD_OUT]
    error, r2, ends = errors(MultiPowerFit(known).law, unseen)
    other = errors(AnnealingFit(known).law, unseen)
    print(f"{size}M, multi-power: {error:.4f}, R2 {r2:.4f}, ends {ends}; annealing: {other[0]:.4f}, R2 {other[1]:.4f}")
    assert error <= 0.005
    assert r2 >= 0.997


@slow
def test_lrs_read_from_a_csv_serve_as_well_as_the_schedules_themselves(real):
    read = {curve.name: curve for curve in read_curves([DATA], warmup=WARMUP)}
    known = [read[f"100/{name}"] for name in ("constant_24000", "cosine_24000", "wsdcon_9")]
    error, r2, _ = errors(MultiPowerFit(known).law, [read[f"100/{name}"] for name in HELD_OUT])
    assert error <= 0.005
    assert r2 >= 0.997
