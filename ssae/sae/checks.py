"""What constructors of SAEs refuse."""

import math
from numbers import Real


def check_whole(name: str, value: object, most: float = float("inf"), example: int = 256) -> None:
    """Refuse what is not a whole number in 1 .. most."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        limit = "of at least 1" if most == float("inf") else f"in 1 .. {most}"
        raise ValueError(
            f"{name} must be a whole number {limit}, got {value!r}; set sae.{name}={example}"
        )


def check_positive(name: str, value: float, example: float) -> None:
    """Refuse what is not above zero."""
    if not _is_number(value) or not value > 0:
        raise ValueError(f"{name} must be positive, got {value!r}; set sae.{name}={example}")


def check_not_negative(name: str, value: float, example: float) -> None:
    """Refuse what is below zero."""
    if not _is_number(value) or not value >= 0:
        raise ValueError(f"{name} must not be negative, got {value!r}; set sae.{name}={example}")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
