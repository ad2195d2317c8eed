"""Every error a user can meet, one class per reaction, each with its exit status.

Damage found in data is a result, not an exception (see `codes.base.Decoded` and the reports of the pipeline). What is
raised is a wrong request, a broken container, or, where the caller asked for strictness, the loss of protected data.
"""

from __future__ import annotations

from collections.abc import Mapping


class CkptGuardError(Exception):
    """Root of all errors of this package; `exit_status` is what the command line returns."""

    exit_status = 1


class UsageError(CkptGuardError):
    """The request itself cannot be met: an unknown name, a value out of range, options that exclude each other."""

    exit_status = 2


class SpecError(UsageError):
    """A code, channel, representation or device is named or parametrised wrongly."""


class MaskError(UsageError):
    """A mask file or a mask does not fit its definition or the tensors it is meant for."""


class MissingExtraError(UsageError):
    """An optional dependency is needed and not installed."""


class CheckpointError(CkptGuardError):
    """A checkpoint is malformed, hostile or of a kind that cannot be read."""


class ContainerError(CkptGuardError):
    """A file is no container, is of an unknown version, or contradicts itself."""


class UncorrectableError(CkptGuardError):
    """Protected data is lost and the caller asked not to go on without it.

    Attributes:
        report: what was found, as `Report.to_json()` gives it.
    """

    exit_status = 11

    def __init__(self, message: str, report: Mapping[str, object]) -> None:
        super().__init__(message)
        self.report = report


class MetadataLostError(ContainerError):
    """The metadata of a container cannot be recovered from any of its copies."""

    exit_status = 12


class MismatchError(CkptGuardError):
    """Files do not belong together, or a digest contradicts what was promised."""

    exit_status = 13
