"""As much of W&B as a run talks to, on a port of this machine, and a reader of .wandb files."""

import base64
import gzip
import http.server
import json
import struct
import threading
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2


class Service(http.server.ThreadingHTTPServer):
    """Keeps the runs that are sent to it: `runs[id]` has config, group, history.

    Of artifacts, what they are made of: `artifacts`, and `files[name]`.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: dict[str, dict[str, Any]] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.keys: set[str] = set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["name"]
        run = self.runs.setdefault(name, {"history": [], "config": {}, "starts": 0})
        if variables.get("config"):
            run["config"] |= json.loads(variables["config"])
        run["sweep"] = variables.get("sweep") or run.get("sweep")
        run["group"] = variables.get("groupName") or run.get("group")
        run["name"] = variables.get("displayName") or run.get("name")
        return {"bucket": self.bucket(name), "inserted": not run["history"]}

    def bucket(self, name: str) -> dict[str, Any]:
        run = self.runs[name]
        entity = {"id": "e", "name": "someone"}
        tail = [json.dumps(row) for row in run["history"][-1:]]
        return {
            "id": name, "name": name, "displayName": run["name"], "description": "",
            "config": json.dumps(run["config"]), "sweepName": None, "summaryMetrics": "{}",
            "project": {"id": "p", "name": "ssae", "entity": entity}, "tags": [], "notes": "",
            "historyLineCount": len(run["history"]), "eventsLineCount": 0, "logLineCount": 0,
            "historyTail": json.dumps(tail), "eventsTail": "[]", "wandbConfig": "{}",
        }  # fmt: skip

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "mutation UpsertBucket" in query:
            return {"upsertBucket": self.upsert(variables)}
        if "query RunResumeStatus" in query:
            name = variables["name"]
            bucket = self.bucket(name) if name in self.runs else None
            return {"model": {"id": "p", "name": "ssae", "entity": {"id": "e", "name": "someone"},
                              "bucket": bucket}}  # fmt: skip
        if "mutation CreateArtifactManifest" in query:
            named = {"id": "m", "file": {"id": "f", "name": "m", "displayName": "m",
                     "uploadUrl": f"{self.url}/upload", "uploadHeaders": []}}  # fmt: skip
            return {"createArtifactManifest": {"artifactManifest": named}}
        if "mutation CreateArtifactFiles" in query:
            asked = variables["input"]["artifactFiles"]
            edges = [
                {"node": {"id": "f", "name": f["name"], "displayName": f["name"],
                          "uploadUrl": f"{self.url}/files/{f['name']}", "uploadHeaders": [],
                          "storagePath": None, "uploadMultipartUrls": None,
                          "artifact": {"id": "a"}}}
                for f in asked
            ]  # fmt: skip
            return {"createArtifactFiles": {"files": {"edges": edges}}}
        if "mutation CreateArtifact" in query:
            self.artifacts.append(variables["input"])
            made = {"id": "a", "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
            return {"createArtifact": {"artifact": made}}
        if "mutation CommitArtifact" in query:
            return {"commitArtifact": {"artifact": {"id": "a", "digest": "d"}}}
        if "mutation CreateRunFiles" in query:
            files = [{"name": f, "uploadUrl": f"{self.url}/upload"} for f in variables["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        user = {"id": "u", "entity": "someone", "username": "someone", "email": "", "flags": "{}",
                "teams": {"edges": []}}  # fmt: skip
        found = {"viewer": user, "serverInfo": {"features": []}, "entity": {"organization": None}}
        return found | {"project": None}  # asked for the type of an artifact: there is none


class Handler(http.server.BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        kind, _, secret = self.headers.get("Authorization", "").partition(" ")
        if kind == "Basic":
            self.server.keys.add(base64.b64decode(secret).decode().removeprefix("api:"))
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            request = json.loads(body)
            data = self.server.answer(request["query"], request.get("variables") or {})
            answer = {"data": data}
        elif self.path.endswith("/file_stream"):
            sent = json.loads(body)
            run = self.server.runs[self.path.split("/")[-2]]
            run["exit"] = sent.get("exitcode", run.get("exit"))
            chunk = (sent.get("files") or {}).get("wandb-history.jsonl")
            if chunk:
                del run["history"][chunk["offset"] :]
                run["history"] += map(json.loads, chunk["content"])
        elif self.path.startswith("/files/"):
            self.server.files[self.path.removeprefix("/files/")] = body
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_PUT = do_GET = do_POST

    def log_message(self, *_: Any) -> None: ...


def records(path: Path) -> list[Any]:
    """Return the records of a .wandb file: a header of 7 bytes, then LevelDB's log format."""
    data = path.read_bytes()
    found, part, at, block = [], b"", 7, 32768
    while at + 7 <= len(data):
        left = block - at % block
        if left < 7:  # a header does not fit: padding
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            found.append(record)
            part = b""
    return found
