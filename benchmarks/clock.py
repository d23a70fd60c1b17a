"""How long the steps of a training take."""

import time

import torch

from lmcleaner.progress import Silent


class Clock(Silent):
    """Notes when it was made, and when each step ended.

    Attributes:
        times: in seconds, of `time.perf_counter`.
    """

    def __init__(self) -> None:
        """Starts."""
        self.times = [time.perf_counter()]

    def advance(self) -> None:
        """A step ended."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())

    def step_seconds(self, warm_steps: int) -> float:
        """Of a step after the first few, as a mean."""
        times = self.times[warm_steps:]
        return (times[-1] - times[0]) / (len(times) - 1)
