"""The one exception a user is meant to see."""


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
