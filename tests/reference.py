"""The obvious slow version of every shape and schedule, from the papers' formulas. It knows nothing of hf_wsd.

Progress x = (updates of the phase done) / (updates of the phase), in [0, 1); lrs are parts of the peak lr.
"""

from math import cos, pi, sqrt

from hypothesis import strategies as st


def fall(name: str, x: float, start: float, end: float) -> float:
    """The lr of a decay from `start` towards `end` at progress x."""
    if name == "inverse":  # arXiv 2410.05192: 1/lr goes in a straight line
        return 1 / (1 / start + x * (1 / end - 1 / start))
    part = {
        "linear": 1 - x,
        "cosine": (1 + cos(pi * x)) / 2,
        "1-sqrt": 1 - sqrt(x),  # arXiv 2405.18392
        "square": 1 - x**2,  # arXiv 2508.01483
    }[name]
    return end + (start - end) * part


def rise(name: str, x: float, start: float) -> float:
    """The lr of a warm-up from `start` to 1 at progress x."""
    part = {"linear": x, "cosine": (1 - cos(pi * x)) / 2, "1-sqrt": 1 - sqrt(1 - x)}[name]
    return start + (1 - start) * part


FALLS = ("1-sqrt", "linear", "cosine", "inverse", "square")
RISES = ("linear", "cosine", "1-sqrt")


def cycle(warmup: int, stable: int, decay: int, *, falling: str, rising: str, minimum: float) -> list[float]:
    """Warm-up, peak, decay: one lr for every update."""
    lrs = [rise(rising, i / warmup, minimum) for i in range(warmup)]
    lrs += [1.0 for _ in range(stable)]
    lrs += [fall(falling, i / decay, 1.0, minimum) for i in range(decay)]
    return lrs


def wsd(
    num_training_steps: int,
    *,
    num_warmup_steps: int,
    num_decay_steps: int,
    decay_type: str,
    warmup_type: str,
    min_lr_ratio: float,
) -> list[float]:
    """The lrs of a WSD run."""
    stable = num_training_steps - num_warmup_steps - num_decay_steps
    return cycle(
        num_warmup_steps, stable, num_decay_steps, falling=decay_type, rising=warmup_type, minimum=min_lr_ratio
    )


def wsd_s(
    ends: list[int], *, num_warmup_steps: int, num_decay_steps: int, decay_type: str, min_lr_ratio: float
) -> list[float]:
    """The lrs of a WSD-S line: a warm-up in the first cycle alone, a decay at the end of each."""
    lrs: list[float] = []
    for end in ends:
        warmup = 0 if lrs else num_warmup_steps
        stable = end - len(lrs) - warmup - num_decay_steps
        lrs += cycle(warmup, stable, num_decay_steps, falling=decay_type, rising="linear", minimum=min_lr_ratio)
    return lrs


def smallest_total(fork: int, fraction: float) -> int:
    """The smallest run of which the last `round(fraction * total)` updates, and not none, start at `fork`."""
    total = fork + 1
    while total - round(fraction * total) != fork:
        total += 1
    return total


@st.composite
def wsd_arguments(draw, falls=FALLS, rises=RISES, longest=60):
    """Arguments of `wsd` that fit together, with every length explicit."""
    warmup, stable, decay = draw(st.integers(0, longest)), draw(st.integers(0, longest)), draw(st.integers(1, longest))
    falling = draw(st.sampled_from(falls))
    lowest = 1e-6 if falling == "inverse" else 0.0
    return {
        "num_training_steps": warmup + stable + decay,
        "num_warmup_steps": warmup,
        "num_decay_steps": decay,
        "decay_type": falling,
        "warmup_type": draw(st.sampled_from(rises)),
        "min_lr_ratio": draw(st.sampled_from([lowest, 0.1]) | st.floats(lowest, 1.0)),
    }
