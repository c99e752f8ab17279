"""What the server sampler talks to: a server, ours or somebody else's, and how requests and answers look there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pipelines.samplers.openai_chat import checked_url, key_from_environment
from pipelines.sampling import Completion, Refusal, Request, SamplingConfig


class Server(Protocol):
    """Where requests go. A server that this process runs may die and come back at another address."""

    @property
    def url(self) -> str:
        """Base of the API, e.g. `http://localhost:8000/v1`."""

    @property
    def key(self) -> str | None: ...

    @property
    def is_ours(self) -> bool:
        """Whether this process runs it, on this machine: no proxy stands in between."""

    @property
    def is_up(self) -> bool:
        """False where it is known to be gone, so that only `restart` helps."""

    def restart(self) -> None:
        """Bring it back; blocks, and is a `UserError` where that is hopeless."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class RemoteServer:
    """A server that somebody else runs."""

    url: str
    key: str | None = None
    is_ours: bool = False
    is_up: bool = True

    @classmethod
    def at(cls, server_url: str) -> "RemoteServer":
        """The server at a URL that a user gave, with the key of the environment."""
        return cls(checked_url(server_url), key_from_environment())

    def __repr__(self) -> str:  # a key is shown nowhere
        return f"RemoteServer({self.url!r})"

    def restart(self) -> None:
        raise AssertionError("nobody here can restart it")

    def close(self) -> None:
        """It is not ours to end."""


class Wire(Protocol):
    """How requests for one model, and the answers to them, look."""

    served_name: str

    def url(self, base: str) -> str:
        """Where requests are posted, given the base of the API."""

    def note(self, entry: Mapping[str, Any]) -> None:
        """Learn from the model's entry in the server's list."""

    def body(self, request: Request, config: SamplingConfig, *, logprobs: bool) -> dict[str, Any] | Refusal: ...

    def read(self, request_id: str, body: Mapping[str, Any], answer: Any) -> Completion:
        """The answer to `body`; `TransientError` or `RefusedError` where it is none."""
