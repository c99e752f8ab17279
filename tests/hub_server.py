"""A small server that speaks what the Hugging Face Hub's client says to publish and fetch a data set.

Repositories, commits on a stated parent, plain and LFS uploads, tags, listings and downloads, all in memory.
It is strict where the Hub is: a commit whose parent is no longer the head is refused (412), so is a tag that
exists (409).
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.serving import Handler, serving

TOKEN = "hf_test"


@dataclass
class Repository:
    """One data set: commits (id -> path -> content), oldest first, and tags."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    private: bool = True

    @property
    def head(self) -> str:
        return next(reversed(self.commits))

    def commit(self, files: dict[str, bytes]) -> str:
        """Put a commit on the head; returns its id."""
        content = json.dumps([len(self.commits), sorted((path, _oid(text)) for path, text in files.items())])
        oid = hashlib.sha1(content.encode()).hexdigest()
        self.commits[oid] = files
        return oid

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """(commit, its files) of a branch, tag or commit."""
        oid = self.head if revision == "main" else self.tags.get(revision, revision)
        return (oid, self.commits[oid]) if oid in self.commits else None


@dataclass
class Hub:
    """The server's state. `before_commit` and `before_tag` are called once, before the next one is looked at."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    lfs: dict[str, bytes] = field(default_factory=dict)
    before_commit: Callable[[], object] | None = None
    before_tag: Callable[[], object] | None = None
    refuse_all: bool = False
    """Whether every token is refused."""
    unknown: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to take this server for the Hub."""
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def _oid(content: bytes) -> str:
    """Git's id of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class RefusalError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A running server; its address is `hub.url`."""
    hub = Hub()

    class Answers(_Handler):
        state = hub

    with serving(Answers) as hub.url:
        yield hub


class _Handler(Handler):
    state: Hub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        method = "GET" if self.command == "HEAD" else self.command
        try:
            for of, pattern, action in _ROUTES:
                if of == method and (found := re.fullmatch(pattern, path)):
                    known = self.headers.get("Authorization") == f"Bearer {TOKEN}" and not self.state.refuse_all
                    if "/lfs-storage/" not in path and not known:
                        raise RefusalError(401, "no token")
                    action(self, body, **{key: unquote(value or "") for key, value in found.groupdict().items()})
                    return
            self.state.unknown.append(f"{self.command} {self.path}")
            raise RefusalError(404, "no such call")
        except RefusalError as refusal:
            self._json({"error": str(refusal)}, refusal.status, {"X-Error-Code": refusal.code})

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _repository(self, repo: str) -> Repository:
        if repo not in self.state.repositories:
            raise RefusalError(404, "no such repository", "RepoNotFound")
        return self.state.repositories[repo]

    def _files(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]]:
        found = self._repository(repo).files(revision)
        if found is None:
            raise RefusalError(404, "no such revision", "RevisionNotFound")
        return found

    # --- what the client asks ---------------------------------------------------------------------

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else f"me/{asked['name']}"
        url = f"{self.state.url}/datasets/{repo}"
        with self.state.lock:
            if repo in self.state.repositories:
                self._json({"error": "exists", "url": url}, 409)
                return
            made = self.state.repositories[repo] = Repository(private=asked.get("visibility") == "private")
            made.commit({".gitattributes": b"*.parquet filter=lfs\n"})
        self._json({"url": url, "name": repo, "id": repo})

    def validate_yaml(self, body: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    def repo(self, body: bytes, repo: str, revision: str = "main") -> None:
        oid, files = self._files(repo, revision)
        siblings = [{"rfilename": path} for path in files]
        self._json({"id": repo, "sha": oid, "private": self._repository(repo).private, "siblings": siblings})

    def refs(self, body: bytes, repo: str) -> None:
        found = self._repository(repo)
        tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": oid} for n, oid in found.tags.items()]
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": found.head}
        self._json({"branches": [main], "converts": [], "tags": tags})

    def tree(self, body: bytes, repo: str, revision: str, folder: str = "") -> None:
        _, files = self._files(repo, revision)
        inside = folder.strip("/") + "/" if folder.strip("/") else ""
        entries = [self._entry(path, text) for path, text in sorted(files.items()) if path.startswith(inside)]
        if "recursive=true" not in self.path.lower():
            folders = {path[len(inside) :].split("/")[0] for path in files if path.startswith(inside)}
            entries = [entry for entry in entries if "/" not in entry["path"][len(inside) :]]
            entries += [
                {"type": "directory", "path": inside + name, "oid": "0" * 40, "size": 0}
                for name in sorted(folders - {entry["path"][len(inside) :] for entry in entries})
            ]
        if not entries:
            raise RefusalError(404, "no such folder", "EntryNotFound")
        self._json(entries)

    def paths_info(self, body: bytes, repo: str, revision: str) -> None:
        _, files = self._files(repo, revision)
        asked = json.loads(body)["paths"]
        found = [self._entry(path, files[path]) for path in asked if path in files]
        folders = [path for path in asked if path not in files and any(name.startswith(f"{path}/") for name in files)]
        self._json([*found, *({"type": "directory", "path": path, "oid": "0" * 40} for path in folders)])

    def _entry(self, path: str, text: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "oid": _oid(text), "size": len(text)}
        if path.endswith(".parquet"):
            entry["lfs"] = {"oid": hashlib.sha256(text).hexdigest(), "size": len(text), "pointerSize": 130}
        return entry

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        _, files = self._files(repo, revision)
        answers = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            lfs = path.endswith((".parquet", ".png"))
            answer = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            if path in files:
                answer["oid"] = hashlib.sha256(files[path]).hexdigest() if lfs else _oid(files[path])
            answers.append(answer)
        self._json({"files": answers})

    def lfs_batch(self, body: bytes, repo: str) -> None:
        objects = []
        for wanted in json.loads(body)["objects"]:
            actions = {"upload": {"href": f"{self.state.url}/lfs-storage/{wanted['oid']}", "header": {}}}
            objects.append({**wanted, **({} if wanted["oid"] in self.state.lfs else {"actions": actions})})
        self._json({"transfer": "basic", "objects": objects})

    def lfs_put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise RefusalError(400, "other content than announced")
        self.state.lfs[oid] = body
        self.send(200, b"")

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        if (intrude := self.state.before_commit) is not None:
            self.state.before_commit = None
            intrude()
        lines = [json.loads(line) for line in body.splitlines()]
        with self.state.lock:
            found = self._repository(repo)
            header = lines[0]["value"]
            if header.get("parentCommit") not in (None, found.head):
                raise RefusalError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(found.commits[found.head])
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    assert value["encoding"] == "base64"
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.state.lfs[value["oid"]]
                else:
                    assert line["key"] == "deletedFile", line
                    del files[value["path"]]
            oid = found.commit(files)
        self._json({"success": True, "commitOid": oid, "commitUrl": f"{self.state.url}/datasets/{repo}/commit/{oid}"})

    def tag(self, body: bytes, repo: str, revision: str) -> None:
        if (intrude := self.state.before_tag) is not None:
            self.state.before_tag = None
            intrude()
        name = json.loads(body)["tag"]
        with self.state.lock:
            if name in self._repository(repo).tags:
                raise RefusalError(409, "Tag reference exists already")
            self._repository(repo).tags[name] = self._files(repo, revision)[0]
        self._json({})

    def resolve(self, body: bytes, repo: str, revision: str, path: str) -> None:
        oid, files = self._files(repo, revision)
        if path not in files:
            raise RefusalError(404, "no such file", "EntryNotFound")
        content = files[path]
        headers = {"X-Repo-Commit": oid, "ETag": f'"{_oid(content)}"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            self.send(200, content, headers)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
        if first >= len(content):
            raise RefusalError(416, "beyond the end")
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self.send(206, content[first : last + 1], headers)


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("GET", rf"/api/datasets/{_REPO}", _Handler.repo),
    ("GET", rf"/api/datasets/{_REPO}/revision/(?P<revision>[^/]+)", _Handler.repo),
    ("GET", rf"/api/datasets/{_REPO}/refs", _Handler.refs),
    ("GET", rf"/api/datasets/{_REPO}/tree/(?P<revision>[^/]+)(?P<folder>/.*)?", _Handler.tree),
    ("POST", rf"/api/datasets/{_REPO}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    ("POST", rf"/api/datasets/{_REPO}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", rf"/api/datasets/{_REPO}/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("POST", rf"/api/datasets/{_REPO}/tag/(?P<revision>[^/]+)", _Handler.tag),
    ("POST", rf"/datasets/{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs-storage/(?P<oid>[0-9a-f]+)", _Handler.lfs_put),
    ("GET", rf"/datasets/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]
