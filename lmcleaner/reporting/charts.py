"""Line charts and timelines as inline SVG.

The picture stretches with the page; its labels are text beside it, so that they stay as large as the rest.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from lmcleaner.reporting.markup import NOTHING, Html, escaped, slug, tag
from lmcleaner.reporting.values import number, shown
from lmcleaner.thinning import thinned

Point = tuple[float, float]

POINTS = 1500  # of a picture, or four of each line where there are very many
_WIDTH, _HEIGHT = 1000.0, 300.0
_LANE = 40.0


def line_chart(
    title: str,
    lines: Iterable[Sequence[Point]],
    *,
    limit: tuple[str, float] | None = None,
    beside: tuple[str, Sequence[Point]] | None = None,
    x_range: tuple[float, float] | None = None,
    is_dotted: bool = False,
) -> Html:
    """Values over steps.

    Args:
        title: what is shown, with its unit.
        lines: points of each line in the order of their steps; what isn't finite is left out, and said.
        limit: name and value of a dashed line across.
        beside: name and points of a dashed line that the others are to be seen beside; not with a limit.
        x_range: first and last step of the picture; those of the points without it.
        is_dotted: draws points alone, where nothing is known between them.

    Returns:
        A figure; nothing without a point.
    """
    assert not (limit and beside)
    given = [list(line) for line in lines]
    drawn = [_finite(line) for line in given]
    points = [point for line in drawn for point in line]
    if not points:
        return NOTHING
    dashed = _finite(beside[1]) if beside else []
    first, last = x_range or (min(x for x, _ in points + dashed), max(x for x, _ in points + dashed))
    if limit:
        dashed = [(first, limit[1]), (last, limit[1])]
    heights = [y for _, y in points + dashed]
    ticks = _ticks(min(heights), max(heights))
    scale = _Scale(first, last, ticks[0], ticks[-1])
    paths = (scale.path(line, max(4, POINTS // len(drawn)), is_dotted=is_dotted) for line in drawn)
    is_point = is_dotted or max(map(len, drawn)) == 1
    shapes = [_grid(len(ticks)), tag("path", d="".join(paths), class_="dots" if is_point else "line")]
    if dashed:
        shapes.append(tag("path", d=scale.path(dashed, POINTS), class_="limit"))
    left_out = sum(map(len, given)) - len(points)
    notes = [f"dashed: {limit[0]} {shown(limit[1])}"] if limit else []
    notes += [f"dashed: {beside[0]}"] if beside else []
    notes += [f"{left_out:,} values that aren't finite are left out"] if left_out else []
    told = f"{_told(points)} {beside[0]}: {_told(dashed)}" if beside and dashed else _told(points)
    labels = [_short(tick, ticks) for tick in reversed(ticks)]
    return _figure(title, told, "; ".join(notes), shapes, labels, _steps(first, last), _HEIGHT)


def _finite(line: Sequence[Point]) -> list[Point]:
    return [(x, y) for x, y in line if number(y) is not None]


def timeline(title: str, description: str, lanes: Mapping[str, Sequence[tuple[float, float]]], num_steps: int) -> Html:
    """Stretches of a training, in lanes that are named beside them.

    Args:
        title: what is shown.
        description: the same in words.
        lanes: name -> first step and end of each stretch; one of a single step is drawn as a stroke.
        num_steps: length of the training.

    Returns:
        A figure.
    """
    scale = _Scale(0, max(num_steps, 1), 0, 1)
    shapes = []
    for place, stretches in enumerate(lanes.values()):
        top = place * _LANE
        shapes.append(tag("rect", x=0, y=top + 8, width=_WIDTH, height=_LANE - 16, class_="lane"))
        spans = dict.fromkeys((round(scale.x(a)), round(scale.x(max(b, a)))) for a, b in stretches)
        bars = "".join(f"M{a} {top + 4:.0f}H{b}V{top + _LANE - 4:.0f}H{a}Z" for a, b in spans)
        shapes.append(tag("path", d=bars, class_="bar"))
    return _figure(
        title, description, "", shapes, list(lanes), _steps(0, num_steps), _LANE * len(lanes), class_="lanes"
    )


class _Scale:
    """From steps and values to the picture's coordinates."""

    def __init__(self, first: float, last: float, low: float, high: float) -> None:
        self._first, self._span = first, (last - first) or 1.0
        self._low, self._height = low, (high - low) or 1.0

    def x(self, step: float) -> float:
        return (step - self._first) / self._span * _WIDTH

    def y(self, value: float) -> float:
        return _HEIGHT - (value - self._low) / self._height * _HEIGHT

    def path(self, points: Sequence[Point], most: int, *, is_dotted: bool = False) -> str:
        """A line through at most so many points; dots are lines without a length, whose caps are round at any width."""
        kept = [points[place] for place in thinned([y for _, y in points], most)]
        places = [f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in kept]
        if is_dotted or len(places) == 1:
            return "".join(f"M{place}h0" for place in places)
        return f"M{'L'.join(places)}" if places else ""


_SMALLEST = 1e-300  # of a range; powers of ten below it lose their digits


def _ticks(low: float, high: float) -> list[float]:
    """Four to six round numbers around a range."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = min(low, 0.0), max(high, 0.0)  # what doesn't change is seen beside nothing
    rough = (high - low if high - low > _SMALLEST else 1.0) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10, 20) if factor * power >= 0.999 * rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * place for place in range(first, max(last, first + 1) + 1)]


def _short(tick: float, ticks: Sequence[float]) -> str:
    """A tick in as few digits as tell it from its neighbours."""
    step = ticks[1] - ticks[0]
    digits = max(1, math.ceil(math.log10(max(abs(tick), step) / step)) + 2)
    return "0" if abs(tick) < step / 2 else f"{tick:.{digits}g}"


def _steps(first: float, last: float) -> list[str]:
    middle = (first + last) / 2
    return [f"step {first:,.0f}", *([f"{middle:,.0f}"] if last - first >= 4 else []), f"{last:,.0f}"]


def _told(points: Sequence[Point]) -> str:
    """The course of a line, for those who don't see it."""
    ordered = sorted(points)
    lowest, highest = min(points, key=lambda point: point[1]), max(points, key=lambda point: point[1])
    first, last, low, high = (
        f"{shown(float(y))} at step {x:,.0f}" for x, y in (ordered[0], ordered[-1], lowest, highest)
    )
    return f"From {first} to {last}; lowest {low}, highest {high}."


def _grid(count: int) -> Html:
    heights = (_HEIGHT * place / (count - 1) for place in range(count))
    return tag("path", d="".join(f"M0 {height:.1f}H{_WIDTH:.0f}" for height in heights), class_="grid")


def _figure(
    title: str, description: str, note: str, shapes: Sequence[Html], y_labels: Sequence[str], x_labels: Sequence[str],
    height: float, class_: str = "chart",
) -> Html:  # fmt: skip
    name, style = slug(title), f"height:{height * 0.7:.0f}px" if class_ == "lanes" else None
    picture = tag(
        "svg", tag("title", title, id=f"{name}-title"), tag("desc", description, id=f"{name}-desc"), *shapes,
        viewBox=f"0 0 {_WIDTH:.0f} {height:.0f}", preserveAspectRatio="none", role="img",
        aria_labelledby=f"{name}-title {name}-desc", style=style,
    )  # fmt: skip
    beside = tag("div", *(tag("span", label) for label in y_labels), class_="y", aria_hidden="true")
    below = tag("div", *(tag("span", label) for label in x_labels), class_="x", aria_hidden="true")
    caption = tag("figcaption", tag("strong", title), *([escaped(f" ({note})")] if note else []))
    return tag("figure", caption, tag("div", beside, picture, below, class_=f"plot {class_}"))
