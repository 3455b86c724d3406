"""A Hugging Face Hub on this machine: what its client asks of it to make, fill, list and fetch a repository."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

Files = dict[str, bytes]


class Hub:
    """Repositories as commits: `repos[name]` is a list of (sha, files), the last being `main`."""

    def __init__(self) -> None:
        self.repos: dict[str, list[tuple[str, Files]]] = {}
        self.private: set[str] = set()
        self.asked: list[str] = []
        self.url = ""

    def commit(self, repo: str, files: Files) -> str:
        commits = self.repos.setdefault(repo, [])
        sha = hashlib.sha1(f"{repo}{len(commits)}".encode()).hexdigest()
        commits.append((sha, files))
        return sha

    def at(self, repo: str, revision: str) -> tuple[str, Files] | None:
        commits = self.repos[repo]
        if revision == "main":
            return commits[-1] if commits else ("0" * 40, {})
        return next((commit for commit in commits if commit[0] == revision), None)


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    """Serve `hub` on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlparse(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            api = path.startswith("/api/models/")
            parts = path.removeprefix("/api/models/").strip("/").split("/")
            repo, verb = "/".join(parts[:2]), parts[2] if len(parts) > 2 else "revision"
            signed_in = "Bearer good" in self.headers.get("Authorization", "")
            if repo not in hub.repos or (repo in hub.private and not signed_in):
                return self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            if (found := hub.at(repo, parts[3] if len(parts) > 3 else "main")) is None:
                return self.answer(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
            sha, files = found
            if api and verb == "revision":
                return self.answer(200, {"id": repo, "sha": sha, "siblings": [{"rfilename": name} for name in files]})
            if api and verb == "tree":
                rows = [{"type": "file", "path": n, "size": len(b), "oid": _oid(b)} for n, b in files.items()]
                return self.answer(200, rows)
            name = "/".join(parts[4:])
            if name not in files:
                return self.answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return self.answer(200, files[name], {"ETag": f'"{_oid(files[name])}"', "X-Repo-Commit": sha})

        def do_POST(self) -> None:
            path = unquote(urlparse(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if path == "/api/validate-yaml":
                return self.answer(200, {"errors": [], "warnings": []})
            if "Bearer good" not in self.headers.get("Authorization", ""):
                return self.answer(401, {"error": "Invalid credentials in Authorization header"})
            if path == "/api/repos/create":
                made = json.loads(body)
                repo = f"{made['organization']}/{made['name']}"
                if repo in hub.repos:
                    return self.answer(409, {"error": "exists", "url": f"{hub.url}/{repo}"})
                hub.repos[repo] = []
                if made.get("visibility") == "private":
                    hub.private.add(repo)
                return self.answer(200, {"url": f"{hub.url}/{repo}", "name": repo})
            org, name, verb, *_ = path.removeprefix("/api/models/").split("/")
            repo = f"{org}/{name}"
            if verb == "preupload":
                asked = json.loads(body)["files"]
                files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]
                return self.answer(200, {"files": files})
            assert verb == "commit", path
            now = dict(hub.at(repo, "main")[1])  # type: ignore[index]
            for line in body.splitlines():
                op = json.loads(line)
                if op["key"] == "file":
                    now[op["value"]["path"]] = base64.b64decode(op["value"]["content"])
                elif op["key"] == "deletedFile":
                    now.pop(op["value"]["path"])
            sha = hub.commit(repo, now)
            return self.answer(200, {"commitUrl": f"{hub.url}/{repo}/commit/{sha}", "commitOid": sha, "success": True})

        def answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
