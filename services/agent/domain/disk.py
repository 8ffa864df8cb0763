"""What could not be written, as a reason."""

import errno
from typing import Final

from schemas.reasons import ContainerNotStarted, DiskFull, Reason

FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def not_written(path: object, error: OSError) -> Reason:
    """Of what is written before an engine starts."""
    if error.errno in FULL:
        return DiskFull(path=str(path))
    return ContainerNotStarted(problem=f"{path} can't be written: {error.strerror}")
