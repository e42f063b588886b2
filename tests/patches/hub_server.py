"""A small hub on this machine: as much of the API as creating, committing to and downloading a repository takes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN, READ_TOKEN = "x", "reads-only"


class Hub(ThreadingHTTPServer):
    """State of the hub: repositories with their commits, large files by sha256, and every request it got."""

    daemon_threads = True
    block_on_close = False  # the thread of a stalled upload never ends

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        # "stall" lets an upload hang, "refuse" answers it with an error.
        self.uploads = "take"
        self.upload_began = threading.Event()
        self.kept_alive: set[socket.socket] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self, but: socket.socket | None = None):
        """Listens no more and closes all connections but one; returns when that is so."""
        self.shutdown()
        self.server_close()
        for connection in self.kept_alive - {but}:
            with suppress(OSError):  # the other end may be gone
                connection.shutdown(socket.SHUT_RDWR)

    def environment(self, home: Path) -> dict[str, str]:
        """Of a process that shall know this hub alone, with its cache in `home`."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))},
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HOME": str(home),
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }

    def files(self, repo_id: str) -> dict[str, bytes]:
        """Files of the last commit."""
        return self.repos[repo_id]["commits"][-1][1]

    def commit(self, repo_id: str, files: dict[str, bytes], message: str = "initial commit", private: bool = False):
        """Adds a commit, and the repository if there is none."""
        repo = self.repos.setdefault(repo_id, {"private": private, "commits": []})
        content = {**(repo["commits"][-1][1] if repo["commits"] else {}), **files}
        oid = hashlib.sha1(f"{len(repo['commits'])} {message} {sorted(content)}".encode()).hexdigest()
        repo["commits"].append((oid, content, message))
        return oid


@contextmanager
def running_hub():
    """A hub that answers at `hub.url` until the end of the block."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.stop()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def setup(self):
        super().setup()
        self.server.kept_alive.add(self.connection)

    def finish(self):
        self.server.kept_alive.discard(self.connection)
        super().finish()

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self._body()
        path = self._path()
        if path == "/stop":  # what a broken network looks like: nobody listens any more
            self.server.stop(but=self.connection)
            self._json({})
        elif path.startswith("/uploads/"):
            self.server.uploads = path.rsplit("/", 1)[1]
            self._json({})
        elif self._token() != TOKEN:
            self._error(403 if self._token() == READ_TOKEN else 401, "Invalid credentials in Authorization header")
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            content = json.loads(body)["content"]
            self._json({"errors": [], "warnings": []}, 200 if content.startswith("---\n") else 400)
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._json({"objects": [self._lfs_action(each) for each in json.loads(body)["objects"]]})
        elif found := re.fullmatch("/api/models/(.+)/preupload/(.+)", path):
            files = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for each in json.loads(body)["files"]
            ]
            self._json({"files": files}) if found[1] in self.server.repos else self._missing()
        elif found := re.fullmatch("/api/models/(.+)/commit/(.+)", path):
            self._commit(found[1], body)
        else:
            self._error(404, f"no such address: {path}")

    def do_PUT(self):
        self.server.upload_began.set()
        if self.server.uploads == "stall":
            # The body is read as far as it comes, and never answered.
            self.rfile.read()
            return
        body = self._body()
        if self.server.uploads == "refuse":
            self._error(400, "the storage is full")
            return
        oid = self._path().rsplit("/", 1)[1]
        if hashlib.sha256(body).hexdigest() != oid:
            self._error(400, "sha256 does not fit")
            return
        self.server.blobs[oid] = body
        self._json({})

    def do_HEAD(self):
        self._get(with_body=False)

    def do_GET(self):
        self._get(with_body=True)

    def _get(self, with_body: bool):
        path = self._path()
        found = re.fullmatch("/api/models/([^/]+/[^/]+)(?:/(revision|tree|refs)(?:/([^/]+)(?:/(.+))?)?)?", path)
        resolved = re.fullmatch("/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if path == "/api/whoami-v2":
            self._json({"name": "me", "type": "user"}) if self._token() == TOKEN else self._error(401, "no such token")
            return
        match = found or resolved
        repo = self.server.repos.get(match[1]) if match else None
        if repo is None or (repo["private"] and self._token() != TOKEN):
            self._missing()
            return
        if found and found[2] == "refs":
            self._json({"branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": self._oid(repo)}]})
            return
        revision = (found[3] if found else resolved[2]) or "main"
        revision = self._oid(repo) if revision == "main" else revision
        commit = next((each for each in repo["commits"] if each[0] == revision), None)
        if commit is None:
            self._error(404, "no such revision", code="RevisionNotFound")
        elif resolved:
            self._file(commit, resolved[3], with_body)
        elif found[2] == "tree" and found[4]:  # no repository here has folders
            self._error(404, "no such folder", code="EntryNotFound")
        elif found[2] == "tree":
            self._json([_tree_entry(name, content) for name, content in sorted(commit[1].items())])
        else:
            siblings = [{"rfilename": name} for name in sorted(commit[1])]
            self._json({"id": match[1], "sha": commit[0], "private": repo["private"], "siblings": siblings})

    def _file(self, commit: tuple, name: str, with_body: bool):
        if name not in commit[1]:
            self._error(404, "no such file", code="EntryNotFound")
            return
        content = commit[1][name]
        headers = {"ETag": f'"{_tree_entry(name, content)["oid"]}"', "X-Repo-Commit": commit[0]}
        self._send(200, content, headers, with_body)

    def _create(self, request: dict):
        repo_id = f"{request.get('organization') or 'me'}/{request['name']}"
        if repo_id in self.server.repos:
            self._json({"error": "You already created this model repo", "url": f"{self.server.url}/{repo_id}"}, 409)
            return
        self.server.commit(repo_id, {".gitattributes": b""}, private=request.get("visibility") == "private")
        self._json({"url": f"{self.server.url}/{repo_id}"})

    def _commit(self, repo_id: str, body: bytes):
        lines = [json.loads(line) for line in body.splitlines()]
        files = {}
        for line in lines[1:]:
            value = line["value"]
            is_large = line["key"] == "lfsFile"
            files[value["path"]] = self.server.blobs[value["oid"]] if is_large else base64.b64decode(value["content"])
        oid = self.server.commit(repo_id, files, lines[0]["value"]["summary"])
        self._json({"commitUrl": f"{self.server.url}/{repo_id}/commit/{oid}", "commitOid": oid})

    def _lfs_action(self, wanted: dict) -> dict:
        if wanted["oid"] in self.server.blobs:
            return wanted
        return {**wanted, "actions": {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}", "header": {}}}}

    @staticmethod
    def _oid(repo: dict) -> str:
        return repo["commits"][-1][0]

    def _path(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        return path

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _missing(self):
        # The hub does not tell a private repository from none.
        self._error(404 if self._token() == TOKEN else 401, "Repository not found", code="RepoNotFound")

    def _error(self, status: int, message: str, code: str | None = None):
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._send(status, json.dumps({"error": message}).encode(), headers, self.command != "HEAD")

    def _json(self, content, status: int = 200):
        headers = {"Content-Type": "application/json"}
        self._send(status, json.dumps(content).encode(), headers, self.command != "HEAD")

    def _send(self, status: int, content: bytes, headers: dict[str, str], with_body: bool):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)


def _tree_entry(name: str, content: bytes) -> dict:
    oid = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    entry = {"type": "file", "path": name, "size": len(content), "oid": oid}
    if name.endswith(".safetensors"):
        sha = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 134}
    return entry
