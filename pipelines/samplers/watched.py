"""A model server that this process runs: started, waited for, watched, started again, ended with us."""

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx

from pipelines.errors import UserError

_GRACE_S = 10.0
_LOOK_EVERY_S = 0.25
_SAY_EVERY_S = 10.0
_RESTART_WINDOW_S = 3600.0
_LOG_PREFIX = re.compile(r"^\(\w+ pid=\d+\) |^(?:DEBUG|INFO|WARNING|ERROR) [\d-]+ [\d:]+ \[[^\]]*\] ")


class WatchedServer:
    """A server process with everything below it, at a free port of 127.0.0.1, with a key made for this run.

    The key reaches the process in its environment (`key_variable`) and is in no file, log or command line.
    Everything below ends when `close` is called or this process ends, however it ends (`keeper.py`).
    """

    def __init__(
        self,
        name: str,
        command: Callable[[int], Sequence[str]],
        log_path: Path,
        *,
        key_variable: str,
        environment: Mapping[str, str] | None = None,
        start_timeout_s: float = 1800.0,
        restarts: int = 3,
    ) -> None:
        """Start `command(port)` and wait until it answers; `name` is what messages call it.

        What it prints is appended to `log_path`. It is started again at most `restarts` times within an hour.
        """
        self.key = secrets.token_urlsafe(24)
        self.is_ours = True
        self.log_path = log_path
        self._name = name
        self._command = command
        self._environment = {**os.environ, **(environment or {}), key_variable: self.key}
        for variable in ("TRACEMILL_API_KEY", "OPENAI_API_KEY"):
            self._environment.pop(variable, None)
        self._start_timeout_s = start_timeout_s
        self._restarts = restarts
        self._restarted: deque[float] = deque()
        self._closed = False
        self._changing = threading.Lock()
        self._start()

    @property
    def url(self) -> str:
        """Base of the API."""
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def is_up(self) -> bool:
        """Whether it has answered once and its process still runs."""
        return self._ready and self._keeper.poll() is None

    def restart(self) -> None:
        """Start it again after it has died; a `UserError` where it has died too often."""
        with self._changing:
            death = self._death()
            self._end()
            while True:
                now = time.monotonic()
                while self._restarted and now - self._restarted[0] > _RESTART_WINDOW_S:
                    self._restarted.popleft()
                if self._closed or len(self._restarted) >= self._restarts:
                    raise UserError(f"{death}; it was started again {len(self._restarted)} times", hint=self._hint())
                self._restarted.append(now)
                sys.stderr.write(f"{death}; starting it again\n")
                try:
                    self._start()
                except UserError as error:
                    death = error.message
                else:
                    return

    def close(self) -> None:
        """End the process and everything below it."""
        self._closed = True  # a start that is under way gives up
        with self._changing:
            self._end()

    def _start(self) -> None:
        self._started, self._ready = time.monotonic(), False
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port: int = free.getsockname()[1]
        command = list(self._command(self._port))
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            log.write(f"\n--- {time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(command)}\n".encode())
            log.flush()
            self._log_start = log.tell()
            keeper = [sys.executable, "-I", str(Path(__file__).with_name("keeper.py")), str(_GRACE_S), *command]
            self._keeper = subprocess.Popen(  # noqa: S603  # our own command
                keeper,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        self._group: int | None = None
        try:
            assert self._keeper.stdout is not None
            group = self._keeper.stdout.readline()
            self._group = int(group) if group else None
            self._wait_until_it_answers()
        except BaseException:
            self._end()
            raise

    def _wait_until_it_answers(self) -> None:
        said = self._started
        with httpx.Client(trust_env=False, timeout=5.0, headers={"Authorization": f"Bearer {self.key}"}) as client:
            while True:
                if self._closed or self._keeper.poll() is not None:
                    raise UserError("closed" if self._closed else self._death(), hint=self._hint())
                with contextlib.suppress(httpx.HTTPError):
                    # It knows our key: no other process has taken the port.
                    if client.get(f"{self.url}/models").status_code == 200:
                        self._ready = True
                        return
                now = time.monotonic()
                if now - self._started > self._start_timeout_s:
                    raise UserError(
                        f"{self._name} does not answer after {now - self._started:.0f} s: {self._last_line()}",
                        hint=self._hint(),
                    )
                if now - said >= _SAY_EVERY_S:
                    said = now
                    sys.stderr.write(f"{self._name}: starting, {now - self._started:.0f} s: {self._last_line()}\n")
                    sys.stderr.flush()
                time.sleep(_LOOK_EVERY_S)

    def _end(self) -> None:
        for pipe in (self._keeper.stdin, self._keeper.stdout):
            assert pipe is not None
            pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._keeper.wait(_GRACE_S + 5.0)
        if self._group is not None:  # a keeper that was killed leaves the rest to us
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._group, signal.SIGKILL)
            self._group = None
        self._keeper.kill()
        self._keeper.wait()

    def _death(self) -> str:
        """One sentence on how it ended."""
        code = self._keeper.wait()
        seconds = time.monotonic() - self._started
        how = f"ended with exit code {code}"
        if code < 0 or code > 128:
            number = -code if code < 0 else code - 128
            how = f"was killed by {signal.Signals(number).name if number in _SIGNALS else f'signal {number}'}"
        return f"{self._name} {how} after {seconds:.0f} s: {self._last_line()}"

    def _last_line(self) -> str:
        """The line of this start's log that says most: the last error, else the last line."""
        with self.log_path.open("rb") as log:
            log.seek(max(self._log_start, self.log_path.stat().st_size - 65536))
            text = log.read().decode(errors="replace")
        lines = [_LOG_PREFIX.sub("", _LOG_PREFIX.sub("", line)).strip() for line in text.splitlines()]
        lines = [line for line in lines if line]
        errors = [line for line in lines if re.match(r"[\w.]*(?:Error|Exception|Interrupt)\b", line)]
        said = (errors or lines or ["it has said nothing"])[-1]
        return "".join(letter if letter.isprintable() else " " for letter in said[:300])

    def _hint(self) -> str:
        return f"its log: {self.log_path}"


_SIGNALS = {each.value for each in signal.Signals}
