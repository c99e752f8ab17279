"""A running `curate view`, and what it answers over a real connection."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from curate.view import index
from curate.view.server import open_server
from pipelines import parquet

FORM = "application/x-www-form-urlencoded"


@dataclass
class Site:
    """A running server and what it answers."""

    address: str
    run: Path
    prompt_ids: list[str]
    rollout_ids: list[str]

    def get(
        self, path: str = "", method: str = "GET", body: str | None = None, **headers: str
    ) -> tuple[int, str, dict[str, str]]:
        """Status, body and headers; `path` is below the address, or absolute where it starts with `/`."""
        at = urlsplit(self.address)
        connection = http.client.HTTPConnection(at.netloc, timeout=30)
        try:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path if path.startswith("/") else at.path + path, body, headers=given)
            response = connection.getresponse()
            return (
                response.status,
                response.read().decode("utf-8", "replace"),
                {name.lower(): value for name, value in response.headers.items()},
            )
        finally:
            connection.close()

    def mark(self, **fields: str) -> tuple[int, str, dict[str, str]]:
        """Send the form as the page would."""
        origin = {"Origin": f"http://{urlsplit(self.address).netloc}"}
        return self.get("mark", "POST", urlencode(fields), Content_Type=FORM, **origin)


@contextmanager
def served(run: Path, home: Path | None = None) -> Iterator[Site]:
    """A server of `run` for as long as the context lasts."""
    ids = {
        table: [
            row for path in parquet.table_files(run, table) for row in parquet.read_table(path, table)[key].to_pylist()
        ]
        for table, key in (("prompts", "prompt_id"), ("rollouts", "rollout_id"))
    }
    with index.opened(run, home) as opened:
        server, listener, address = open_server(opened, "<out>", 0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Site(address, run, ids["prompts"], ids["rollouts"])
        finally:
            server.should_exit = True
            thread.join()
            listener.close()
