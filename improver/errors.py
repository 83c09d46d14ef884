"""The error tree of `improver`.

ImproverError
├── PolicyError            the model could not be asked
│   └── PolicyUnavailable  it did not answer for so long that waiting on makes no sense
├── ImportFileError        a file to import cannot be read at all (a bad row is counted, not raised)
├── BenchmarkError         examination tasks are missing, malformed or inconsistent
├── FirewallError          training data touches the examination: nothing is trained
├── NotEnough              too little to learn from; the cycle ends as skipped, not as failed
├── TrainingError          the training process failed, or its adapter could not be served
├── CycleError             a cycle cannot be started or resumed
├── Halted                 its user paused or cancelled the cycle: no fault
└── SwapError              no server proved a release within its time
"""

from __future__ import annotations


class ImproverError(Exception):
    """Base of all errors raised by `improver`."""


class PolicyError(ImproverError):
    """The model could not be asked: the server refused the request. The message has its words."""


class PolicyUnavailable(PolicyError):
    """Server or engine did not answer, also after retries over minutes."""


class ImportFileError(ImproverError):
    """A file to import is missing, not text, or of an unknown format."""


class BenchmarkError(ImproverError):
    """Examination tasks are missing, malformed or inconsistent: the operator's fault."""


class FirewallError(ImproverError):
    """Training data touches the examination, or that cannot be ruled out."""


class NotEnough(ImproverError):
    """There is too little to learn from. `missing` says what would help."""

    def __init__(self, missing: str) -> None:
        super().__init__(missing)
        self.missing = missing


class TrainingError(ImproverError):
    """The training process failed, or the engine would refuse what it made."""


class CycleError(ImproverError):
    """A cycle cannot be started or resumed as asked."""


class Halted(ImproverError):
    """The cycle was paused or cancelled by its user while it ran: no fault."""


class SwapError(ImproverError):
    """No server gave a receipt for a release within its time."""
