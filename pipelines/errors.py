"""The one exception a user is meant to see, and what it quotes of others."""


class UserError(Exception):
    """Something the user can put right: what failed, the value seen, and what to do next.

    Commands print it as two lines (`error:`, `hint:`) and leave with exit code 1; a traceback
    is always our bug.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str | None]]:
        # Crosses process boundaries (executors, verifier pool) without losing its hint.
        return type(self), (self.message, self.hint)


def first_line(error: BaseException) -> str:
    """What an error of a library says first, to stand in one of our sentences; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
