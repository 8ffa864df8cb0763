"""What ends a command: one sentence for people."""

from typing import Final

USAGE: Final = 2
"""Exit code when the sentence says what to change first."""
CORRUPT: Final = 70
"""Exit code when what is stored can't be trusted."""
INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, where an answer was wanted and did not come."""


class Failed(Exception):
    """The sentence goes to standard error, the code to whoever called."""

    def __init__(self, sentence: str, *, exit_code: int = 1) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code
