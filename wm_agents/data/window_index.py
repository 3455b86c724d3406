"""Random windows inside episodes, with all steps sampled equally often."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray


class WindowIndex:
    """The windows of `seq_len` steps in the episodes of a buffer.

    Every place of a window that overlaps an episode is drawn equally often, and then shifted inside. Otherwise the
    last step of an episode would be sampled `seq_len` times less often than a middle one.
    """

    def __init__(self, begins: NDArray[np.int64], steps: NDArray[np.int64], seq_len: int) -> None:
        """Index episodes by the position of their first frame, and their number of steps."""
        self.seq_len = seq_len
        self._begins, self._lasts = begins, begins + steps - seq_len
        self._longest = int(steps.max(initial=0))
        self._upto = np.cumsum(np.where(steps < seq_len, 0, steps + seq_len - 1))

    def sample(self, num: int, generator: torch.Generator | None = None) -> NDArray[np.int64]:
        """Positions of the first frames of `num` windows.

        Raises:
            ValueError: no episode is long enough.
        """
        upto = self._upto
        if not len(upto) or upto[-1] == 0:
            raise ValueError(
                f"no episode has {self.seq_len} steps or more, the longest of the {len(upto)} episodes has "
                f"{self._longest}; lower seq_len, or allow windows over several episodes with pack=True"
            )
        pick = torch.randint(int(upto[-1]), (num,), generator=generator).numpy()
        episode = np.searchsorted(upto, pick, side="right")
        before = np.where(episode > 0, upto[episode - 1], 0)
        drawn = self._begins[episode] + pick - before - (self.seq_len - 1)
        begin: NDArray[np.int64] = drawn.clip(self._begins[episode], self._lasts[episode])
        return begin
