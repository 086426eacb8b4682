"""Decay shapes as a user writes them in a module of their own, good and bad."""

import math

NUMBER = 3


def cubic(x):
    """A fall."""
    return 1 - x**3


def bent(x, bend=2.0, lift=1.0):
    """A fall with parameters."""
    return (1 - x) ** (bend * lift)


def needs_bend(x, bend):
    """A fall whose parameter has no default."""
    return (1 - x) ** bend


def fails(x):
    """It fails where a decay is half done, not where it starts."""
    return math.sqrt(0.5 - x) if x > 0.5 else 1 - x


def dips(x):
    """Below 0 in the last thousandth alone."""
    return 1 - 1.0005 * x


def nan(x):
    """No number in the second half."""
    return math.nan if x > 0.5 else 1 - x


def text(x):
    """What is no number at all."""
    return "high"


def nothing(x):
    """It forgot to return."""


def above(x):
    """Above the peak."""
    return 1.5 - x


def below(x):
    """Below 0."""
    return 0.5 - x


def two(x, y):
    """A function of two progresses."""
    return x * y
