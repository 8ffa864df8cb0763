"""Errors by who must act."""


class Refused(Exception):
    """The caller asked for what the rules forbid: 4xx, and nothing is retried."""

    def __init__(
        self, code: str, message: str, *, field: str | None = None, status: int = 422, **numbers: object
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.status = status
        self.numbers = numbers


class Conflict(Exception):
    """Somebody wrote first: read again, decide again."""


class Unavailable(Exception):
    """A dependency is down: try later, answer 503."""


class Corrupt(Exception):
    """What is stored contradicts itself: stop, and page somebody."""


class Deposed(Conflict):
    """Another scheduler was elected; the server refuses what this one still sends."""


def first_cause(error: BaseException) -> BaseException:
    """A task group inside a task group raises a group of groups; the sentence for people is in what lies inside."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
