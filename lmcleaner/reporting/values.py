"""Values of documents that nobody vouches for: taken where they are what they should be, and shown to people."""

import math
from typing import Any

# Beyond these a picture's arithmetic would overflow or vanish.
_LARGEST, _SMALLEST = 1e300, 1e-300


def at(document: object, *path: str) -> Any:
    """A value within nested objects; None where the way ends before."""
    for key in path:
        if not isinstance(document, dict):
            return None
        document = document.get(key)
    return document


def number(value: object) -> float | None:
    """A finite number that can be drawn; None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not abs(value) < _LARGEST:
        return None
    return float(value) if abs(value) > _SMALLEST else 0.0


def by_step(value: object) -> list[tuple[int, float]]:
    """Numbers by step, in the order of the steps; what isn't that is left out."""
    if not isinstance(value, dict):
        return []
    steps = {int(step): number(found) for step, found in value.items() if step.isdecimal() and len(step) < 16}
    return sorted((step, found) for step, found in steps.items() if found is not None)


def shown(value: object) -> str:
    """Any value as text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return _decimal(value) if math.isfinite(value) else "not finite"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(part)}" for key, part in value.items()) or "none"
    return str(value)


def _decimal(value: float) -> str:
    """Four digits, and no exponent where a number is merely large."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.4g}"
