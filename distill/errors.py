"""Every error the nightly path raises on purpose, as one tree.

    DistillError
    ├── SettingsError     DISTILL_… variables are unknown or bad
    ├── DataError         a file of data, or the archive, is missing or malformed; says where
    ├── NightError        a night cannot continue now: a service is away, a step's input is missing
    │   ├── AnotherNight  another night runs, or another guard
    │   └── RunMismatch   a run directory is missing, or was begun with other settings
    ├── TrainingError     training cannot start, or failed: no examples, no memory for one, the loss is not a number
    ├── EvaluationError   samples or rewards are not available
    └── PromotionError    an adapter is malformed, does not load, or does not behave as it should

Messages never hold prompt or answer text.
"""

from __future__ import annotations


class DistillError(Exception):
    """Root of the tree."""


class SettingsError(DistillError):
    """DISTILL_… variables are unknown or bad."""


class DataError(DistillError):
    """A file of data, or the archive, is missing or malformed."""


class NightError(DistillError):
    """A night cannot continue."""


class AnotherNight(NightError):
    """Another night runs, or another guard watches."""


class RunMismatch(NightError):
    """A run directory is missing, or was begun with other settings."""


class TrainingError(DistillError):
    """Training cannot start, or failed."""


class EvaluationError(DistillError):
    """Samples or rewards are not available."""


class PromotionError(DistillError):
    """An adapter is malformed, does not load, or does not behave as it should."""
