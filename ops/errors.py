"""The error tree of `ops`.

OpsError
├── SettingsError      a setting is unknown, malformed or contradicts another (the operator's fault)
├── ModelError         a model cannot be found, fetched, verified or converted
├── StoreError         the record cannot be read or written
│   ├── StoreUnavailable   the database does not answer, is full or locked; trying again may help
│   ├── NotFound           no such interaction, feedback, cycle, adapter
│   └── Conflict           the row exists already, or another process holds the lease
├── ArtifactError      a directory on disk is incomplete, altered or hostile
├── RegistryError      an adapter may not make this transition
├── ErasureError       whose data shall be erased is not clear
├── ExportError        an export or a backup cannot be written, or is not whole
├── FeedbackError      no server takes the feedback, or there is none
└── ProcessError       a child process did not start or does not answer
"""


class OpsError(Exception):
    """Base of all errors raised by `ops`."""


class SettingsError(OpsError, ValueError):
    """A setting is unknown, malformed or contradicts another."""


class ModelError(OpsError):
    """A model cannot be found, fetched, verified or converted."""


class StoreError(OpsError):
    """The record cannot be read or written."""


class StoreUnavailable(StoreError):
    """The database does not answer, is full or locked; trying again may help."""


class NotFound(StoreError, LookupError):
    """No such row. The message names what was looked for."""


class Conflict(StoreError):
    """The row exists already, or another process holds the lease."""


class ArtifactError(OpsError):
    """A directory on disk is incomplete, altered or hostile."""


class RegistryError(OpsError):
    """An adapter may not make this transition."""


class ErasureError(OpsError):
    """Whose data shall be erased is not clear: the caller's fault. Nothing was changed."""


class ExportError(OpsError):
    """An export or a backup cannot be written, or is not whole: nothing of it was taken in."""


class FeedbackError(OpsError):
    """No server takes the feedback, or nothing was said."""


class ProcessError(OpsError):
    """A child process did not start or does not answer."""
