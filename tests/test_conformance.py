"""Other systems' lrs: README's table of translations against arrays of their own code, and against their formulas."""

import json
import math
import re
from functools import cache
from inspect import signature
from itertools import accumulate, pairwise
from math import cos, pi, sqrt
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hf_wsd.builders import wsd, wsd_s
from hf_wsd.shapes import SHAPES

ROOT = Path(__file__).resolve().parents[1]
REFERENCE_LRS = ROOT.parent / "shared" / "data" / "reference_lrs.json"

# First column of README's table: what the entry's config leaves out, as the system itself fills it in.
DEFAULTS = {
    "transformers get_wsd_schedule": {"warmup_type": "linear", "decay_type": "cosine", "min_lr_ratio": 0},
    "transformers get_wsd_schedule with num_stable_steps": {"warmup_type": "linear", "min_lr_ratio": 0},
    "OLMo-core WSD": {"decay": None, "decay_fraction": 0.1, "warmup_min_lr": 0.0, "decay_min_lr": 0.0},
    "OLMo-core WSDS": {"decay_fraction": 0.1},
    "levanter wsd": {},
    "levanter wsd with cycles": {"rewarmup": 0.0},
    "Megatron-LM WSD": {"lr_warmup_init": 0.0, "min_lr": 0.0},
    "epfml wsd_schedule": {"final_lr_factor": 0.0, "init_div_factor": 100, "fract_decay": 0.1, "decay_type": "linear"},
    "torchtitan": {"min_lr_factor": 0.0, "decay_type": "linear"},
    "nanochat": {"final_lr_frac": 0.0},
    "MiniCPM WarmupStableExp": {"drop_rate": 0.5},
}
ROW_OF_FOLDER = {
    "transformers": "transformers get_wsd_schedule",
    "olmo-core": "OLMo-core WSD",
    "levanter": "levanter wsd",
    "megatron": "Megatron-LM WSD",
    "epfml": "epfml wsd_schedule",
    "torchtitan": "torchtitan",
    "nanochat": "nanochat",
    "minicpm": "MiniCPM WarmupStableExp",
}
ROW_OF_ENTRY = {
    "transformers/short-stable-runs-on-at-min": "transformers get_wsd_schedule with num_stable_steps",
    "olmo-core/wsds-3periods": "OLMo-core WSDS",
    "levanter/wsds-linear-rewarmup": "levanter wsd with cycles",
}


# --- README ---


@cache
def tables():
    """README's two tables: row to expression, and their shape names to ours."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## Coming from another system\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    expressions = {row[0].replace("`", ""): row[1].strip("`") for row in rows if "wsd" in row[-1]}
    shapes = [row for row in rows if len(row) == 3 and row[2].strip("`") in SHAPES]
    return expressions, {name: row[2].strip("`") for row in shapes for name in re.findall(r"`([^`]+)`", row[0])}


def translated(row, *, total, peak, **config):
    """The schedule that README says to write for a configuration of another system."""
    expressions, ours = tables()
    names = {"wsd": wsd, "wsd_s": wsd_s, "accumulate": accumulate, "log": math.log, "ours": ours}
    return eval(expressions[row], names | DEFAULTS[row] | config | {"T": total, "peak": peak})


def test_every_row_of_readmes_table_is_tested():
    assert set(tables()[0]) == set(DEFAULTS)


def test_shapes_of_readmes_table_are_read():
    assert tables()[1] == {
        **{name: name for name in ("linear", "cosine", "square")},
        **{"sqrt": "1-sqrt", "minus_sqrt": "1-sqrt", "inv": "inverse"},
        **{"exponential": "megatron-exponential", "exp": "exponential", "miror_cosine": "mirror-cosine"},
    }


# --- arrays that the systems' own code computed ---


@pytest.fixture(scope="module")
def entries():
    if not REFERENCE_LRS.exists():
        pytest.skip("the reference data are not beside this checkout")
    return {entry["id"]: entry for entry in json.loads(REFERENCE_LRS.read_text())["entries"]}


RECORDED = [
    *(f"transformers/{name}-min0.0" for name in ("linear-linear", "linear-cosine", "linear-1-sqrt")),
    *(f"transformers/{name}-min0.1" for name in ("cosine-linear", "1-sqrt-cosine", "linear-1-sqrt")),
    *("transformers/nowarmup-linear", "transformers/short-stable-runs-on-at-min"),
    *("olmo-core/wsd-linear-min0", "olmo-core/wsd-linear-min0.1", "olmo-core/wsds-3periods"),
    *("levanter/wsd-linear", "levanter/wsds-linear-rewarmup"),
    *(f"megatron/wsd-{style}-min0" for style in ("linear", "exponential", "minus_sqrt")),
    *(f"epfml/{name}" for name in ("linear", "square", "sqrt")),
    *("torchtitan/wsd-linear", "torchtitan/wsd-sqrt", "torchtitan/wsd-linear-min0.1"),
    *("nanochat/warmdown0.2", "minicpm/warmupstableexp"),
]


def test_all_24_recorded_arrays_are_compared(entries):
    assert (len(entries), sorted(entries)) == (24, sorted(RECORDED))


@pytest.mark.parametrize("name", RECORDED)
def test_readmes_expression_gives_every_recorded_lr(entries, name):
    entry = entries[name]
    row = ROW_OF_ENTRY.get(name) or ROW_OF_FOLDER[name.partition("/")[0]]
    schedule = translated(row, total=entry["total_steps"], peak=entry["peak"], **entry["config"])
    tolerance = 1e-6 if name.startswith("levanter/") else 1e-12  # levanter computes in single precision
    assert (schedule.total_steps, schedule.multipliers()) == (
        entry["total_steps"],
        pytest.approx(entry["lrs"], rel=0, abs=tolerance),
    )


# --- their formulas, with other lengths, minima and shapes ---


def olmo_wsd(u, *, total, peak, warmup, decay, decay_fraction, warmup_min_lr, decay_min_lr):
    current = u + 1  # its counter is raised before the update
    if decay is None:
        decay = round(decay_fraction * total)
    if current <= warmup:
        return warmup_min_lr + (peak - warmup_min_lr) * current / warmup
    if current >= total - decay:
        return decay_min_lr + (peak - decay_min_lr) * (total - current) / decay
    return peak


def olmo_wsds(u, *, total, peak, period_lengths, warmup, decay_fraction):
    current = u + 1
    ends = list(accumulate(period_lengths))
    start, end = next((a, b) for a, b in pairwise([0, *ends]) if current <= b)
    if current <= warmup:
        return peak * current / warmup
    return peak * min(1, (end - current) / round(decay_fraction * (end - start)))


def fallen(style, x, end):
    """Multiplier of a fall from 1 to `end`, by the name that the system gives it."""
    if style == "exp":
        return end**x
    if style == "inv":
        return 1 / (x / end + (1 - x))
    part = {
        "linear": 1 - x,
        "cosine": (1 + cos(pi * x)) / 2,
        "1-sqrt": 1 - sqrt(x),
        "sqrt": 1 - sqrt(x),
        "minus_sqrt": 1 - sqrt(x),
        "square": 1 - x**2,
        "exponential": 2 * 0.5**x - 1,
        "miror_cosine": 2 * (1 - x) - (1 + cos(pi * x)) / 2,
    }[style]
    return end + (1 - end) * part


def risen(style, x, start):
    part = {"linear": x, "cosine": (1 - cos(pi * x)) / 2, "1-sqrt": 1 - sqrt(1 - x)}[style]
    return start + (1 - start) * part


def transformers_wsd(u, *, total, peak, num_warmup_steps, num_decay_steps, warmup_type, decay_type, min_lr_ratio):
    stable = total - num_warmup_steps - num_decay_steps
    return transformers_stable(
        u,
        **{"total": total, "peak": peak, "num_warmup_steps": num_warmup_steps, "num_stable_steps": stable},
        **{"num_decay_steps": num_decay_steps, "warmup_type": warmup_type, "decay_type": decay_type},
        min_lr_ratio=min_lr_ratio,
    )


def transformers_stable(
    u, *, total, peak, num_warmup_steps, num_stable_steps, num_decay_steps, warmup_type, decay_type, min_lr_ratio
):
    decay_start = num_warmup_steps + num_stable_steps
    if u < num_warmup_steps:
        return peak * risen(warmup_type, u / num_warmup_steps, min_lr_ratio)
    if u < decay_start:
        return peak
    return peak * fallen(decay_type, min(1, (u - decay_start) / num_decay_steps), min_lr_ratio)


def levanter_wsd(u, *, total, peak, warmup, decay, lr_schedule, min_lr_ratio):
    if u < warmup:
        return peak * u / warmup
    return peak * fallen(lr_schedule, max(0, (u - (total - decay)) / decay), min_lr_ratio)


def levanter_cycles(u, *, total, peak, cycles, warmup, rewarmup, decay, lr_schedule, min_lr_ratio):
    start, end = next((a, b) for a, b in pairwise([0, *cycles, total]) if u < b)
    climb, origin = (warmup, 0.0) if start == 0 else (int(rewarmup * (end - start)), min_lr_ratio)
    if u - start < climb:
        return peak * (origin + (1 - origin) * (u - start) / climb)
    steps = int(decay * (end - start))
    return peak * fallen(lr_schedule, max(0, (u - (end - steps)) / steps), min_lr_ratio)


def megatron_wsd(
    u,
    *,
    total,
    peak,
    lr_warmup_iters,
    lr_warmup_init,
    lr_decay_iters,
    lr_wsd_decay_iters,
    lr_wsd_decay_style,
    min_lr,
):
    if u <= lr_warmup_iters and lr_warmup_iters:
        return lr_warmup_init + (peak - lr_warmup_init) * u / lr_warmup_iters
    if u > lr_decay_iters:
        return min_lr
    x = max(0, (u - (lr_decay_iters - lr_wsd_decay_iters)) / lr_wsd_decay_iters)
    return min_lr + (peak - min_lr) * fallen(lr_wsd_decay_style, x, 0)


def epfml_wsd(u, *, total, peak, n_iterations, n_warmup, init_div_factor, fract_decay, decay_type, final_lr_factor):
    if u < n_warmup:
        return peak * (u / n_warmup + (1 - u / n_warmup) / init_div_factor)
    steps = int(fract_decay * n_iterations)
    return peak * fallen(decay_type, max(0, (u - (n_iterations - steps)) / steps), final_lr_factor)


def torchtitan_wsd(u, *, total, peak, warmup_steps, decay_ratio, decay_type, min_lr_factor):
    if u < warmup_steps:
        return peak * (u + 1) / warmup_steps
    steps = round(total * decay_ratio)
    stable_end = total + 1 - steps
    if u < stable_end:
        return peak
    return peak * fallen(decay_type, (u + 1 - stable_end) / steps, min_lr_factor)


def nanochat_wsd(u, *, total, peak, num_iterations, warmup_steps, warmdown_ratio, final_lr_frac):
    if u < warmup_steps:
        return peak * (u + 1) / warmup_steps
    steps = round(warmdown_ratio * num_iterations)
    left = min(1, (num_iterations - u) / steps)
    return peak * (left + (1 - left) * final_lr_frac)


def minicpm_wsd(u, *, total, peak, warmup_iter, drop_begin, drop_iter, drop_rate):
    if u < warmup_iter:
        return peak * u / warmup_iter
    return peak * drop_rate ** (max(0, u - drop_begin) / drop_iter)


def lengths(draw):
    """Warm-up, decay and all updates; warm-ups of 0 and 1, and runs without a stable phase, are drawn often."""
    warmup = draw(st.sampled_from([0, 1]) | st.integers(0, 30))
    decay = draw(st.sampled_from([1]) | st.integers(1, 30))
    return warmup, decay, warmup + decay + draw(st.sampled_from([0, 1]) | st.integers(0, 60))


PEAKS = st.floats(1e-5, 10)
PARTS = st.sampled_from([0.0, 1.0]) | st.floats(0, 1)
FRACTIONS = st.sampled_from([0.1, 0.2, 0.29, 0.5]) | st.floats(0.02, 0.9)


@st.composite
def transformers_config(draw):
    warmup, decay, total = lengths(draw)
    return {
        **{"total": total, "peak": draw(PEAKS), "num_warmup_steps": warmup, "num_decay_steps": decay},
        "warmup_type": draw(st.sampled_from(["linear", "cosine", "1-sqrt"])),
        "decay_type": draw(st.sampled_from(["linear", "cosine", "1-sqrt"])),
        "min_lr_ratio": draw(PARTS),
    }


@st.composite
def transformers_config_with_stable_steps(draw):
    config = draw(transformers_config())
    fits = config["total"] - config["num_warmup_steps"] - config["num_decay_steps"]
    return config | {"num_stable_steps": draw(st.integers(0, fits))}


@st.composite
def olmo_config(draw):
    warmup, decay, total = lengths(draw)
    peak, fraction = draw(PEAKS), draw(st.none() | FRACTIONS)
    if fraction is not None:
        decay = round(fraction * total)
        assume(decay >= 1 and max(warmup - 1, 0) + decay + 1 <= total)
    elif not warmup:
        total += 1  # its counter starts at 1: the decay's last update is one more
    return {
        **{"total": total, "peak": peak, "warmup": warmup, "decay_fraction": fraction},
        "decay": decay if fraction is None else None,
        "warmup_min_lr": 0.999 * peak * draw(PARTS),
        "decay_min_lr": 0.999 * peak * draw(PARTS),
    }


@st.composite
def olmo_periods(draw):
    periods = draw(st.lists(st.integers(30, 60), min_size=1, max_size=4))
    config = {"period_lengths": periods, "warmup": draw(st.integers(0, 10)), "decay_fraction": draw(FRACTIONS)}
    assume(round(config["decay_fraction"] * min(periods)) >= 1 and config["decay_fraction"] < 0.6)
    return config | {"total": sum(periods), "peak": draw(PEAKS)}


def levanter_shape(draw):
    style = draw(st.sampled_from(["linear", "cosine", "inv"]))
    return {"lr_schedule": style, "min_lr_ratio": draw(st.floats(1e-6, 1) if style == "inv" else PARTS)}


@st.composite
def levanter_config(draw):
    warmup, decay, total = lengths(draw)
    return {"total": total, "peak": draw(PEAKS), "warmup": warmup, "decay": decay, **levanter_shape(draw)}


@st.composite
def levanter_config_with_cycles(draw):
    ends = list(accumulate(draw(st.lists(st.integers(2, 4).map(lambda n: 20 * n), min_size=1, max_size=4))))
    return {
        **{"total": ends[-1], "cycles": ends[:-1], "peak": draw(PEAKS), "warmup": draw(st.integers(0, 10))},
        "rewarmup": draw(st.sampled_from([0.0, 0.05, 0.1, 0.25])),  # whole steps of every cycle
        "decay": draw(st.sampled_from([0.05, 0.1, 0.2, 0.5])),
        **levanter_shape(draw),
    }


@st.composite
def megatron_config(draw):
    warmup, decay, end = lengths(draw)
    peak = draw(PEAKS)
    return {
        **{"total": end + draw(st.integers(0, 9)), "peak": peak, "lr_warmup_iters": warmup, "lr_decay_iters": end},
        "lr_warmup_init": peak * draw(PARTS),
        "lr_wsd_decay_iters": decay,
        "lr_wsd_decay_style": draw(st.sampled_from(["linear", "cosine", "exponential", "minus_sqrt"])),
        "min_lr": peak * draw(PARTS),
    }


@st.composite
def epfml_config(draw):
    warmup, _, total = lengths(draw)
    fraction = draw(FRACTIONS)
    assume(1 <= int(fraction * total) <= total - warmup)
    style = draw(st.sampled_from(["linear", "exp", "cosine", "miror_cosine", "square", "sqrt"]))
    return {
        **{"total": total, "n_iterations": total, "peak": draw(PEAKS), "n_warmup": warmup, "fract_decay": fraction},
        "init_div_factor": draw(st.floats(1, 1000)),
        "decay_type": style,
        "final_lr_factor": draw(st.floats(1e-6, 1) if style == "exp" else PARTS),
    }


@st.composite
def torchtitan_config(draw):
    warmup, _, total = lengths(draw)
    fraction = draw(FRACTIONS)
    assume(1 <= round(total * fraction) <= total - warmup)
    return {
        **{"total": total, "peak": draw(PEAKS), "warmup_steps": warmup, "decay_ratio": fraction},
        "decay_type": draw(st.sampled_from(["linear", "sqrt", "cosine"])),
        "min_lr_factor": draw(PARTS),
    }


@st.composite
def nanochat_config(draw):
    warmup, _, total = lengths(draw)
    fraction = draw(FRACTIONS)
    assume(1 <= round(total * fraction) <= total - warmup)
    run = {"total": total, "num_iterations": total, "peak": draw(PEAKS)}
    return run | {"warmup_steps": warmup, "warmdown_ratio": fraction, "final_lr_frac": draw(PARTS)}


@st.composite
def minicpm_config(draw):
    warmup, decay, total = lengths(draw)
    run = {"total": total, "peak": draw(PEAKS), "warmup_iter": warmup, "drop_begin": total - decay}
    return run | {"drop_iter": draw(st.integers(1, 100)), "drop_rate": draw(st.just(0.5) | st.floats(0.05, 0.95))}


FORMULAS = {
    "transformers get_wsd_schedule": (transformers_wsd, transformers_config()),
    "transformers get_wsd_schedule with num_stable_steps": (
        transformers_stable,
        transformers_config_with_stable_steps(),
    ),
    "OLMo-core WSD": (olmo_wsd, olmo_config()),
    "OLMo-core WSDS": (olmo_wsds, olmo_periods()),
    "levanter wsd": (levanter_wsd, levanter_config()),
    "levanter wsd with cycles": (levanter_cycles, levanter_config_with_cycles()),
    "Megatron-LM WSD": (megatron_wsd, megatron_config()),
    "epfml wsd_schedule": (epfml_wsd, epfml_config()),
    "torchtitan": (torchtitan_wsd, torchtitan_config()),
    "nanochat": (nanochat_wsd, nanochat_config()),
    "MiniCPM WarmupStableExp": (minicpm_wsd, minicpm_config()),
}


def test_every_row_has_a_formula():
    assert set(FORMULAS) == set(DEFAULTS)


@pytest.mark.parametrize("row", FORMULAS)
@given(data=st.data())
def test_readmes_expression_is_the_systems_formula_at_every_update(row, data):
    formula, configs = FORMULAS[row]
    config = data.draw(configs)
    schedule = translated(row, **config)
    theirs = [formula(u, **config) for u in range(config["total"])]
    ours = [config["peak"] * multiplier for multiplier in schedule.multipliers(0, config["total"])]
    assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-12 * config["peak"])


@pytest.mark.parametrize("folder", ROW_OF_FOLDER)
def test_formula_gives_the_recorded_arrays(entries, folder):
    """The formulas above are what the systems' own code computes."""
    for name, entry in entries.items():
        if name.partition("/")[0] == folder:
            row = ROW_OF_ENTRY.get(name) or ROW_OF_FOLDER[folder]
            formula = FORMULAS[row][0]
            known = DEFAULTS[row] | entry["config"] | {"total": entry["total_steps"], "peak": entry["peak"]}
            wanted = [key for key in signature(formula).parameters if key != "u"]
            lrs = [formula(u, **{key: known[key] for key in wanted}) for u in range(known["total"])]
            assert lrs == pytest.approx(entry["lrs"], rel=0, abs=1e-6 if folder == "levanter" else 1e-12)
