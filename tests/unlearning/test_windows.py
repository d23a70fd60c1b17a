"""Windows cover every occurrence once, carry it for K steps, and start and end where the log knows the parameters."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcleaner.unlearning.windows import Window, find_windows

UNHURRIED = settings(deadline=None)  # a busy machine is no failure
CHECKPOINTS = (0, 10, 20, 30)


def spans(*occurrences: int, K: int | None, ends_anywhere: bool = True) -> list[tuple[int, int, int, int]]:  # noqa: N803
    """Start, first, last, end of each window in a run of 30 steps with a checkpoint before every tenth."""
    known = range(30) if ends_anywhere else ()
    windows = find_windows(occurrences, K=K, num_steps=30, checkpoint_steps=CHECKPOINTS, known_steps=known)
    return [(window.start, window.first, window.last, window.end) for window in windows]


def test_no_occurrence_needs_no_window() -> None:
    assert spans(K=5) == []


def test_one_occurrence_is_carried_for_k_steps_after_its_own() -> None:
    assert spans(12, K=5) == [(10, 12, 12, 18)]


def test_windows_that_overlap_are_one() -> None:
    assert spans(2, 4, 6, K=3) == [(0, 2, 6, 10)]


def test_windows_that_touch_are_one() -> None:
    assert spans(2, 6, K=3) == [(0, 2, 6, 10)]  # the first ends with θ[6], from which the second occurrence departs


def test_windows_with_a_step_between_them_stay_two() -> None:
    assert spans(2, 7, K=3) == [(0, 2, 2, 6), (0, 7, 7, 11)]


def test_an_occurrence_within_a_merged_window_prolongs_it() -> None:
    assert spans(2, 5, 8, 20, K=3) == [(0, 2, 8, 12), (20, 20, 20, 24)]


def test_k_of_zero_covers_the_occurrence_itself() -> None:
    assert spans(4, 6, K=0) == [(0, 4, 4, 5), (0, 6, 6, 7)]
    assert spans(4, 5, K=0) == [(0, 4, 5, 6)]


def test_all_carries_everything_to_the_end_in_one_window() -> None:
    assert spans(3, 28, K=None) == [(0, 3, 28, 30)]


def test_an_end_beyond_the_run_is_clipped() -> None:
    assert spans(27, K=5) == [(20, 27, 27, 30)]
    assert spans(27, K=10**9) == [(20, 27, 27, 30)]


@pytest.mark.parametrize("K", [0, 1, 800, None])
@pytest.mark.parametrize("ends_anywhere", [True, False])
def test_the_last_step_is_covered(K: int | None, ends_anywhere: bool) -> None:  # noqa: N803
    assert spans(29, K=K, ends_anywhere=ends_anywhere) == [(20, 29, 29, 30)]


@pytest.mark.parametrize(("occurrence", "K", "end"), [(2, 3, 10), (2, 7, 10), (2, 8, 20), (9, 0, 10), (19, 1, 30)])
def test_without_updates_an_end_moves_on_to_the_next_checkpoint(occurrence: int, K: int, end: int) -> None:  # noqa: N803
    assert [window[3] for window in spans(occurrence, K=K, ends_anywhere=False)] == [end]


def test_windows_that_touch_only_after_rounding_up_are_one() -> None:
    assert spans(2, 9, K=3) == [(0, 2, 2, 6), (0, 9, 9, 13)]
    assert spans(2, 9, K=3, ends_anywhere=False) == [(0, 2, 9, 20)]


def test_a_run_without_a_last_checkpoint_ends_at_its_last_step() -> None:
    windows = find_windows([25], K=2, num_steps=30, checkpoint_steps=[0, 10], known_steps=())
    assert windows == (Window(start=10, first=25, last=25, end=30),)


@pytest.mark.parametrize(("first", "start"), [(0, 0), (9, 0), (10, 10), (11, 10), (29, 20)])
def test_a_window_starts_from_the_checkpoint_at_or_before_its_first_occurrence(first: int, start: int) -> None:
    assert [window[0] for window in spans(first, K=0)] == [start]


def test_a_step_that_holds_two_forgotten_rows_counts_once() -> None:
    assert spans(4, 4, 4, K=2) == spans(4, K=2)


def test_a_window_tells_its_lengths() -> None:
    window = Window(start=10, first=12, last=15, end=18)
    assert (window.num_lead_in, window.num_carried, window.K_used) == (2, 6, 2)


@dataclass(frozen=True)
class Request:
    """Arguments of `find_windows` that fit together."""

    occurrences: list[int]
    K: int | None
    num_steps: int
    checkpoints: list[int]
    ends_anywhere: bool

    @property
    def windows(self) -> tuple[Window, ...]:
        return find_windows(
            self.occurrences,
            K=self.K,
            num_steps=self.num_steps,
            checkpoint_steps=self.checkpoints,
            known_steps=range(self.num_steps) if self.ends_anywhere else (),
        )

    def is_known(self, step: int) -> bool:
        """Whether θ[step] can be read."""
        return self.ends_anywhere or step in self.checkpoints or step == self.num_steps


@st.composite
def requests(draw: st.DrawFn) -> Request:
    num_steps = draw(st.integers(1, 60))
    checkpoints = draw(st.sets(st.integers(1, num_steps))) | {0}
    return Request(
        occurrences=sorted(draw(st.lists(st.integers(0, num_steps - 1), max_size=12))),
        K=draw(st.none() | st.integers(0, 70)),
        num_steps=num_steps,
        checkpoints=sorted(checkpoints),
        ends_anywhere=draw(st.booleans()),
    )


@UNHURRIED
@given(requests())
def test_every_occurrence_lies_in_exactly_one_window(request: Request) -> None:
    for step in request.occurrences:
        assert sum(window.first <= step <= window.last < window.end for window in request.windows) == 1


@UNHURRIED
@given(requests())
def test_windows_begin_and_end_their_occurrences_with_one(request: Request) -> None:
    for window in request.windows:
        assert {window.first, window.last} <= set(request.occurrences)


@UNHURRIED
@given(requests())
def test_windows_come_in_order_with_a_step_between_them(request: Request) -> None:
    windows = request.windows
    for before, after in pairwise(windows):
        assert before.end < after.first


@UNHURRIED
@given(requests())
def test_every_window_carries_its_last_occurrence_for_k_steps_or_to_the_end(request: Request) -> None:
    for window in request.windows:
        left = request.num_steps - window.last - 1
        assert window.K_used >= (left if request.K is None else min(request.K, left))
        assert window.end <= request.num_steps


@UNHURRIED
@given(requests())
def test_no_window_is_longer_than_it_must_be(request: Request) -> None:
    for window in request.windows:
        shortest = request.num_steps if request.K is None else min(request.num_steps, window.last + 1 + request.K)
        assert not any(request.is_known(step) for step in range(shortest, window.end))


@UNHURRIED
@given(requests())
def test_windows_end_where_the_parameters_are_known(request: Request) -> None:
    assert all(request.is_known(window.end) for window in request.windows)


@UNHURRIED
@given(requests())
def test_windows_start_from_the_last_checkpoint_that_precedes_every_deviation(request: Request) -> None:
    for window in request.windows:
        assert window.start in request.checkpoints
        assert window.start <= window.first
        assert not any(window.start < checkpoint <= window.first for checkpoint in request.checkpoints)
