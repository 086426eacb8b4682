"""The obvious slow version of every shape and schedule, from the papers' formulas. It knows nothing of hf_wsd.

Progress x = (updates of the phase done) / (updates of the phase), in [0, 1); lrs are parts of the peak lr.
"""

from math import cos, exp, log, pi, sqrt

from hypothesis import strategies as st


def fall(name: str, x: float, start: float, end: float, **params: float) -> float:
    """The lr of a decay from `start` towards `end` at progress x; `steps` is the length of the decay."""
    if name in OWN_CURVES:
        return OWN_CURVES[name](x, start, end, **params)
    part = {
        "linear": 1 - x,
        "cosine": (1 + cos(pi * x)) / 2,
        "1-sqrt": 1 - sqrt(x),  # arXiv 2405.18392
        "square": 1 - x**2,  # arXiv 2508.01483
        "mirror-cosine": 2 * (1 - x) - (1 + cos(pi * x)) / 2,  # arXiv 2508.01483: the cosine mirrored at the line
        "power": (1 - x) ** params.get("p", 1.5),  # arXiv 2503.12811
        "megatron-exponential": 2 * 0.5**x - 1,  # Megatron-LM
    }[name]
    return end + (start - end) * part


def inverse(x: float, start: float, end: float) -> float:
    """1 / lr goes in a straight line (arXiv 2410.05192)."""
    return 1 / (1 / start + x * (1 / end - 1 / start))


def exponential(x: float, start: float, end: float) -> float:
    """The logarithm of the lr goes in a straight line: f^x of the start, f = end / start."""
    return exp((1 - x) * log(start) + x * log(end))


def half_life(x: float, start: float, end: float, *, steps: int, half_life: float) -> float:
    """The lr halves every `half_life` updates (MiniCPM, arXiv 2404.06395)."""
    return start / 2 ** (x * steps / half_life)


def lowered_linear(x: float, start: float, end: float, *, factor: float = 0.7) -> float:
    """A straight line that leaves from a part of the peak."""
    return factor * start + x * (end - factor * start)


def multi_step(x: float, start: float, end: float) -> float:
    """Half the decay at 31.6 % of the peak, half at 10 %: the last fifth of a run (DeepSeek LLM, arXiv 2401.02954)."""
    return start * (0.316 if 2 * x < 1 else 0.1)


def rise(name: str, x: float, start: float) -> float:
    """The lr of a warm-up from `start` to 1 at progress x."""
    part = {"linear": x, "cosine": (1 - cos(pi * x)) / 2, "1-sqrt": 1 - sqrt(1 - x)}[name]
    return start + (1 - start) * part


OWN_CURVES = {
    "inverse": inverse,
    "exponential": exponential,
    "half-life": half_life,
    "lowered-linear": lowered_linear,
    "multi-step": multi_step,
}
POSITIVE = ("inverse", "exponential")  # between lrs above 0 alone

# Shapes that need no parameter and go to any minimum.
FALLS = ("1-sqrt", "linear", "cosine", "inverse", "square", "mirror-cosine", "power", "exponential")
FALLS += ("megatron-exponential",)
# The rest, and parameters other than the defaults: shape, its parameters, and the part of the peak where it ends by
# itself after STEPS updates (None: wherever it is told to).
STEPS = 97
SPECIAL_FALLS = (
    ("power", {"p": 1.0}, None),
    ("power", {"p": 3}, None),
    ("half-life", {"half_life": 20}, 2 ** (-STEPS / 20)),
    ("half-life", {"half_life": 5000.0}, 2 ** (-STEPS / 5000)),
    ("lowered-linear", {}, None),
    ("lowered-linear", {"factor": 0.5}, None),
    ("multi-step", {}, 0.1),
)
JUMPS = ("lowered-linear", "multi-step")  # they leave the peak at once
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
    lowest = 1e-6 if falling in POSITIVE else 0.0
    return {
        "num_training_steps": warmup + stable + decay,
        "num_warmup_steps": warmup,
        "num_decay_steps": decay,
        "decay_type": falling,
        "warmup_type": draw(st.sampled_from(rises)),
        "min_lr_ratio": draw(st.sampled_from([lowest, 0.1]) | st.floats(lowest, 1.0)),
    }
