"""Progress: a bar on a terminal, a line now and then in a log, silence for short work."""

import io

from pipelines import progress as module
from pipelines.progress import progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_short_work_leaves_a_log_silent():
    log = io.StringIO()
    with progress("verify", total=2, stream=log) as advance:
        advance()
        advance()
    assert log.getvalue() == ""


def test_long_work_says_count_rate_and_time_left():
    log = io.StringIO()
    lines = module._Lines("verify", 4000, "rows", log, started_s=0.0)
    for second in range(1, 31):
        lines.advance(100, now_s=float(second))
    assert log.getvalue().splitlines() == [
        "verify: 1,000/4,000 rows, 100 rows/s, 0:30 left",
        "verify: 2,000/4,000 rows, 100 rows/s, 0:20 left",
        "verify: 3,000/4,000 rows, 100 rows/s, 0:10 left",
    ]


def test_without_a_total_nothing_is_said_of_the_time_left():
    log = io.StringIO()
    lines = module._Lines("sample", None, "rollouts", log, started_s=0.0)
    lines.advance(15, now_s=10.0)
    assert log.getvalue() == "sample: 15 rollouts, 1.5 rollouts/s\n"


def test_a_terminal_gets_a_bar_that_ends_full():
    terminal = Terminal()
    with progress("verify", total=2, unit="traces", stream=terminal) as advance:
        advance()
        advance()
    assert "2/2" in terminal.getvalue()
    assert "traces" in terminal.getvalue()
