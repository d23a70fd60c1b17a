"""Pictures keep the extremes of what they show, whatever the values are."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcleaner.reporting.charts import POINTS, line_chart, timeline
from lmcleaner.thinning import thinned

Values = st.lists(st.floats(allow_subnormal=False), max_size=300)


@given(Values, st.integers(4, 60))
def test_few_points_are_kept_and_the_extremes_are_among_them(values: list[float], limit: int) -> None:
    kept = thinned(values, limit)
    assert len(kept) <= limit
    assert kept == sorted(set(kept))
    finite = [value for value in values if math.isfinite(value)]
    shown = [values[place] for place in kept if math.isfinite(values[place])]
    if finite:
        assert (min(shown), max(shown)) == (min(finite), max(finite))
    if values:
        assert {0, len(values) - 1} <= set(kept)


def test_a_single_spike_of_a_long_series_is_drawn() -> None:
    values = [1.0] * 10_000
    values[7_777] = 50.0
    kept = thinned(values, POINTS)
    assert 7_777 in kept
    assert POINTS / 2 < len(kept) <= POINTS


@given(st.lists(st.floats(allow_subnormal=False), min_size=1, max_size=20), st.booleans())
def test_whatever_is_drawn_lies_within_the_picture(values: list[float], is_dotted: bool) -> None:
    picture = line_chart("Values", [list(enumerate(values))], is_dotted=is_dotted)
    drawn = [value for value in values if abs(value) < 1e300]
    assert bool(picture) == bool(drawn)
    for path in re.findall(r' d="([^"]*)"', picture):
        for x, y in re.findall(r"[ML](\S+) (-?[\d.]+)", path):
            assert -0.1 <= float(x) <= 1000.1
            assert -0.1 <= float(y) <= 300.1
    if len(drawn) < len(values) and drawn:
        assert f"{len(values) - len(drawn)} values that aren&#x27;t finite are left out" in picture


def test_the_labels_are_round_and_the_course_is_told() -> None:
    picture = line_chart("Loss", [[(0, 3.9), (5, 0.2), (10, 0.7)]], limit=("threshold", 1.0))
    assert re.findall(r"<span>([^<]*)</span>", picture) == ["4", "3", "2", "1", "0", "step 0", "5", "10"]
    assert "From 3.9 at step 0 to 0.7 at step 10; lowest 0.2 at step 5, highest 3.9 at step 0." in picture
    assert "dashed: threshold 1" in picture


def test_a_line_is_told_and_drawn_beside_another() -> None:
    picture = line_chart("Recall", [[(0, 0.1), (5, 0.3)]], beside=("Gold", [(0, 0.2), (10, 0.8), (20, float("nan"))]))
    assert re.findall(r"<span>([^<]*)</span>", picture)[-3:] == ["step 0", "5", "10"]
    assert "From 0.1 at step 0 to 0.3 at step 5" in picture
    assert "Gold: From 0.2 at step 0 to 0.8 at step 10" in picture
    assert "(dashed: Gold)" in picture
    line, dashed = re.findall(r'<path d="(M[^"]*)" class="(?:line|limit)"', picture)
    assert line == "M0.0 262.5L500.0 187.5"
    assert dashed == "M0.0 225.0L1000.0 0.0"


def test_very_many_lines_stay_small() -> None:
    lines = [[(10 * line + step, float(step % 7)) for step in range(10)] for line in range(5_000)]
    assert len(line_chart("Norms", lines)) < 400_000


@pytest.mark.parametrize("num_steps", [0, 1, 10_000])
def test_a_timeline_has_a_lane_for_each_name(num_steps: int) -> None:
    picture = timeline("Steps", "told", {"first": [(0, num_steps)], "second": []}, num_steps)
    assert picture.count('class="lane"') == 2
    assert "<span>second</span>" in picture
