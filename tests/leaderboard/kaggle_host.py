"""A fake of Kaggle's HTTP API on 127.0.0.1, to which Kaggle's real client connects."""

from __future__ import annotations

import json
import threading
from base64 import b64decode
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SERVICE = "/v1/competitions.CompetitionApiService/"
SECRET = "0123456789abcdef0123456789abcdef"


@dataclass
class FakeKaggle:
    """Answer requests about one competition, `toy-2026`; use as a context manager.

    Attributes:
        daily: number of submissions that are allowed per day.
        uploads: uploaded bytes, by token.
        submissions: the submissions, in the form in which the API returns them.
        refuse: HTTP status and message with which requests of a name are refused.
        broken: names of requests that are carried out, but whose connection is closed before the answer.
        asked: names of all requests so far.
        started: bodies of the requests that started an upload, by token.
        limits: whether the API tells the limits of submissions.
    """

    daily: int = 5
    uploads: dict[str, bytes] = field(default_factory=dict)
    submissions: list[dict[str, Any]] = field(default_factory=list)
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    started: dict[str, dict[str, Any]] = field(default_factory=dict)
    limits: bool = True

    def __enter__(self) -> FakeKaggle:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                fake._post(self)

            def do_PUT(self) -> None:
                fake._put(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def score(self, ref: int, public: str, private: str = "", status: str = "COMPLETE", error: str = "") -> None:
        """Set the scores and the status of a submission, as if the host had scored it.

        Args:
            ref: number of the submission.
            public: public score.
            private: private score; empty if it is not known.
            status: status, e.g. "COMPLETE".
            error: message of an error.
        """
        next(one for one in self.submissions if one["ref"] == ref).update(
            publicScore=public, privateScore=private, status=status, errorDescription=error
        )

    def _post(self, request: BaseHTTPRequestHandler) -> None:
        """Answer a POST request with the method of this class that has the request's name."""
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        assert request.path.startswith(SERVICE), request.path
        name = request.path.removeprefix(SERVICE)
        self.asked.append(name)
        user = b64decode(request.headers.get("Authorization", "Basic ").removeprefix("Basic ")).decode()
        if user != f"me:{SECRET}":
            return _answer(request, 401, {"code": 401, "message": "Unauthenticated"})
        if name in self.refuse:
            code, message = self.refuse[name]
            return _answer(request, code, {"code": code, "message": message})
        if body.get("competitionName", "toy-2026") != "toy-2026":
            return _answer(request, 404, {"code": 404, "message": "Not found"})
        answer = getattr(self, f"_{name}")(body)
        if name in self.broken:
            request.connection.close()
            return None
        return _answer(request, 200, answer)

    def _put(self, request: BaseHTTPRequestHandler) -> None:
        """Store uploaded bytes."""
        token = request.path.rsplit("/", 1)[-1]
        data = request.rfile.read(int(request.headers["Content-Length"]))
        if "PUT" in self.refuse:
            return _answer(request, self.refuse["PUT"][0], {})
        assert len(data) == int(self.started[token]["contentLength"])
        self.uploads[token] = data
        return _answer(request, 200, {})

    def _StartSubmissionUpload(self, body: dict[str, Any]) -> dict[str, Any]:
        token = f"blob{len(self.started)}"
        self.started[token] = body
        return {"token": token, "createUrl": f"{self.url}/blobs/{token}"}

    def _CreateSubmission(self, body: dict[str, Any]) -> dict[str, Any]:
        token = body["blobFileTokens"]
        assert token in self.uploads, "the bytes come before the submission"
        return self._new(self.started[token]["fileName"], body)

    def _CreateCodeSubmission(self, body: dict[str, Any]) -> dict[str, Any]:
        self.code = body
        return self._new(body["fileName"], body)

    def _new(self, file: str, body: dict[str, Any]) -> dict[str, Any]:
        """Add a pending submission of a file, and return the answer to the request."""
        ref = 1000 + len(self.submissions)
        self.submissions.append(
            {
                "ref": ref,
                "date": "2099-01-01T00:00:00.000Z",
                "description": body.get("submissionDescription", ""),
                "fileName": file,
                "status": "PENDING",
                "publicScore": "",
                "privateScore": "",
                "errorDescription": "",
            }
        )
        return {"message": "Successfully submitted", "ref": ref}

    def _ListSubmissions(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"submissions": self.submissions[::-1][: body["pageSize"]]}

    def _GetSubmissionLimits(self, _: dict[str, Any]) -> dict[str, Any]:
        used = len(self.submissions)
        return {"numToday": used, "numTotal": used, "numAllowedNow": max(0, self.daily - used)} if self.limits else {}


def _answer(request: BaseHTTPRequestHandler, status: int, body: dict[str, Any]) -> None:
    """Send a JSON answer."""
    content = json.dumps(body).encode()
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content)
