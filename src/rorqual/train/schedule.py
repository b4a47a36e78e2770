"""The warmup-stable-decay learning-rate schedule (Hu et al. 2024)."""

from __future__ import annotations

from rorqual.core.config import Config, Natural, NonNegative, Share


class LearningRateSchedule(Config):
    """The schedule of the learning-rate factor.

    The learning-rate factor rises to 1 over `warmup` steps. Over the last steps of the run, a fraction `decay` of all steps,
    the factor falls linearly to `final`.
    """

    warmup: Natural = 0
    decay: Share = 0.0
    final: NonNegative = 0.0

    def factor_at(self, step: int, steps: int) -> float:
        """Return the learning-rate factor at `step` (counted from 0) in a run of `steps` steps."""
        factor = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        start = steps * (1 - self.decay)
        if self.decay and step >= start:
            factor *= 1 - (1 - self.final) * (step + 1 - start) / (steps - start)
        return factor
