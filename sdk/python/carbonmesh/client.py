"""A client of a cluster: enqueues jobs through any node, waits for them, changes them.

It needs nothing but the standard library. What may have been done although no answer came is asked
again: a job has an idempotency key for that, given or made here.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import time
import uuid
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Type, Union
from urllib.parse import quote, urlencode, urlsplit

from .pipeline import Pipeline

DEFAULT_URL = "http://127.0.0.1:7400"

#: How long one request waits for a job's end, in seconds: short enough to notice a lost node.
_WAIT_STEP = 30.0

#: How long a node may take until there is a connection, in seconds.
_CONNECT_TIME = 5.0

#: How long a node may take to answer, beside what it was told to wait, in seconds.
_ANSWER_TIME = 30.0


class CarbonMeshError(Exception):
    """Something did not work."""


class Unreachable(CarbonMeshError):
    """No node answers. What was asked may have been done."""


class Refused(CarbonMeshError):
    """A node said no; ``problem`` is what it said (RFC 9457)."""

    def __init__(self, problem: Dict[str, Any]) -> None:
        super().__init__(problem.get("detail") or problem.get("title") or "refused")
        self.problem = problem

    @property
    def status(self) -> int:
        """The HTTP status."""
        return int(self.problem.get("status", 0))

    @property
    def kind(self) -> str:
        """The last word of the problem's type, such as ``busy``."""
        return str(self.problem.get("type", "")).rsplit(":", 1)[-1]


class TimeOver(CarbonMeshError):
    """A job has not ended in time; ``job`` is where it stands."""

    def __init__(self, job: Dict[str, Any]) -> None:
        super().__init__(f"job {job['id']} is still {job['state']}")
        self.job = job


class Client:
    """Talks to the nodes at these URLs: to the first that answers.

    Without any, to ``CARBONMESH_API`` or the node of this machine. ``patience`` is how many seconds a
    call goes on trying while nodes are busy, away or without a coordinator.
    """

    def __init__(self, *urls: str, patience: float = 30.0) -> None:
        given = urls or (os.environ.get("CARBONMESH_API", DEFAULT_URL),)
        self._urls = [url.rstrip("/") for url in given]
        for url in self._urls:
            if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
                raise ValueError(f"{url!r} is no address of a node: write {DEFAULT_URL}")
        self._patience = patience

    # Jobs.

    def enqueue(
        self,
        pipeline: str,
        instructions: Dict[str, Any],
        *,
        key: Optional[str] = None,
        delay: Optional[str] = None,
        run_at: Optional[str] = None,
        timeout: Optional[str] = None,
        deadline: Optional[str] = None,
        priority: Optional[int] = None,
    ) -> str:
        """Enqueues a job; it is on disk when this returns its id."""
        query = _given(
            delay=delay, run_at=run_at, timeout=timeout, deadline=deadline, priority=priority
        )
        # Asked again after a lost answer, it is the same job.
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        path = f"/v1/pipelines/{quote(pipeline, safe='')}/jobs"
        return str(self._call("POST", path, query, instructions, headers)["id"])

    def enqueue_many(
        self, pipeline: str, jobs: Iterable[Dict[str, Any]], *, key: Optional[str] = None, **options: Any
    ) -> Iterator[Dict[str, Any]]:
        """Enqueues jobs as they come, and yields an answer for each, in their order.

        ``key`` names the field of each that is its idempotency key; only with it may all of it be
        done again after a failure. An answer has ``id``, or ``error``. Up to 1,000 jobs go in one
        request.
        """
        query = _given(key=key, **options)
        path = f"/v1/pipelines/{quote(pipeline, safe='')}/jobs"
        for batch in _batches(jobs):
            body = b"".join(_json(job) + b"\n" for job in batch)
            headers = {"Content-Type": "application/x-ndjson"}
            text = self._exchange("POST", path, query, body, headers, again=key is not None)
            for line in text.splitlines():
                yield json.loads(line)

    def job(self, job: str) -> Dict[str, Any]:
        """Where a job stands."""
        return self._call("GET", f"/v1/jobs/{quote(job, safe='')}")

    def wait(self, job: str, timeout: Optional[float] = None) -> Dict[str, Any]:
        """Waits for a job's end, and returns it. Raises ``TimeOver`` after so many seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _WAIT_STEP if end is None else min(_WAIT_STEP, max(0.0, end - time.monotonic()))
            path = f"/v1/jobs/{quote(job, safe='')}"
            found = self._call("GET", path, {"wait": f"{int(left * 1000)}ms"}, waits=left)
            if found["state"] in ("succeeded", "dead", "cancelled"):
                return found
            if end is not None and time.monotonic() >= end:
                raise TimeOver(found)

    def explain(self, job: str) -> Dict[str, Any]:
        """Why a job waits."""
        return self._call("GET", f"/v1/jobs/{quote(job, safe='')}/explain")

    def jobs(self, pipeline: str, *, state: Optional[str] = None) -> Iterator[Dict[str, Any]]:
        """The jobs of a pipeline, page by page."""
        after = None
        while True:
            query = _given(state=state, after=after)
            page = self._call("GET", f"/v1/pipelines/{quote(pipeline, safe='')}/jobs", query)
            yield from page["jobs"]
            after = page.get("next")
            if after is None:
                return

    def cancel(self, job: str, reason: Optional[str] = None) -> None:
        """Ends a job."""
        self._call("POST", f"/v1/jobs/{quote(job, safe='')}/cancel", {}, _given(reason=reason))

    def retry(self, job: str, *, from_start: bool = False) -> None:
        """Runs a dead or cancelled job again. Asked once: see ``Unreachable``."""
        document = {"from_start": from_start}
        self._call("POST", f"/v1/jobs/{quote(job, safe='')}/retry", {}, document, again=False)

    def discard(self, job: str) -> None:
        """Forgets a finished job. Asked once: see ``Unreachable``."""
        self._call("DELETE", f"/v1/jobs/{quote(job, safe='')}", again=False)

    def signal(self, job: str, name: str, data: Optional[Dict[str, Any]] = None) -> None:
        """Gives a job the signal that a phase of it waits for. Asked once: see ``Unreachable``."""
        path = f"/v1/jobs/{quote(job, safe='')}/signals/{quote(name, safe='')}"
        self._call("POST", path, {}, data or {}, again=False)

    # The cluster.

    def apply(self, pipeline: Union[Dict[str, Any], Type[Pipeline]]) -> Dict[str, Any]:
        """Makes a pipeline known, or changes it for jobs to come."""
        document = pipeline if isinstance(pipeline, dict) else pipeline.document()
        return self._call("PUT", f"/v1/pipelines/{quote(document['name'], safe='')}", {}, document)

    def pipelines(self) -> List[Dict[str, Any]]:
        """All pipelines."""
        return list(self._call("GET", "/v1/pipelines")["pipelines"])

    def status(self) -> Dict[str, Any]:
        """The cluster at a glance."""
        return self._call("GET", "/v1/status")

    # How it is said.

    def _call(
        self,
        method: str,
        path: str,
        query: Optional[Dict[str, Any]] = None,
        document: Optional[Dict[str, Any]] = None,
        headers: Optional[Dict[str, str]] = None,
        waits: float = 0.0,
        again: bool = True,
    ) -> Dict[str, Any]:
        body = None if document is None else _json(document)
        kind = {} if body is None else {"Content-Type": "application/json"}
        all_headers = {**kind, **(headers or {})}
        text = self._exchange(method, path, query or {}, body, all_headers, waits, again)
        return dict(json.loads(text)) if text else {}

    def _exchange(
        self,
        method: str,
        path: str,
        query: Dict[str, Any],
        body: Optional[bytes],
        headers: Dict[str, str],
        waits: float = 0.0,
        again: bool = True,
    ) -> bytes:
        """Asks one node after the other until one answers, or the patience is over.

        What may not be asked again goes to the next node only if it was not taken.
        """
        target = path + ("?" + urlencode(query) if query else "")
        end: Optional[float] = None
        pause, turn = 0.05, 0
        while True:
            url = self._urls[turn % len(self._urls)]
            turn += 1
            failure: CarbonMeshError
            try:
                status, retry_after, text = _ask(url, method, target, body, headers, waits)
            except ConnectionRefusedError as error:
                failure = Unreachable(f"no node answers at {url}: {error}")
            except (OSError, http.client.HTTPException) as error:
                failure = Unreachable(f"the connection to {url} broke: {error!r}")
                if not again:
                    raise failure from error
            else:
                if status < 400:
                    return text
                failure = Refused(_problem(status, text))
                if status not in (429, 503) and not (status == 504 and again):
                    raise failure
                pause = max(pause, retry_after)
            # Nodes that were found busy together should not be asked together again.
            wait = pause * random.uniform(0.5, 1.0) if turn % len(self._urls) == 0 else 0.0
            # A node that answers late has not used up the patience for the others.
            end = end or time.monotonic() + self._patience
            if turn >= len(self._urls) and time.monotonic() + wait >= end:
                raise failure
            time.sleep(wait)
            pause = min(pause * 2, 5.0)


class PipelineClient:
    """The client of CarbonTube: ``enqueue_job`` says whether it was done, and what became of it."""

    def __init__(self, *urls: str) -> None:
        self._client = Client(*(url for url in urls if url.startswith("http")))

    def connect(self) -> None:
        """There is nothing to connect to: each call finds its node."""

    def close(self) -> None:
        """There is nothing to close."""

    def enqueue_job(self, data: Dict[str, Any]) -> Tuple[bool, Dict[str, Any]]:
        """Enqueues ``{"name": PIPELINE, "instructions": {...}}``."""
        for field in ("name", "instructions"):
            if field not in data:
                return False, {"error": f"the job has no {field!r}"}
        try:
            job = self._client.enqueue(data["name"], data["instructions"])
        except Refused as refused:
            return False, {**refused.problem, "error": str(refused)}
        except CarbonMeshError as error:
            return False, {"error": str(error)}
        return True, {"job_id": job, "id": job, **data}


def _ask(
    url: str,
    method: str,
    target: str,
    body: Optional[bytes],
    headers: Dict[str, str],
    waits: float,
) -> Tuple[int, float, bytes]:
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=_CONNECT_TIME)
    try:
        connection.connect()
        connection.sock.settimeout(_ANSWER_TIME + waits)
        connection.request(method, parts.path + target, body, headers)
        answer = connection.getresponse()
        retry_after = answer.getheader("Retry-After") or ""
        seconds = float(retry_after) if retry_after.isdigit() else 0.0
        return answer.status, seconds, answer.read()
    finally:
        connection.close()


def _problem(status: int, text: bytes) -> Dict[str, Any]:
    try:
        problem = json.loads(text)
    except ValueError:
        problem = None
    if isinstance(problem, dict):
        return {"status": status, **problem}
    detail = text.decode("utf-8", "replace")[:200]
    return {"status": status, "title": "no CarbonMesh node", "detail": detail}


def _json(document: Dict[str, Any]) -> bytes:
    if not isinstance(document, dict):
        raise TypeError(f"a job's instructions are a dict, not {type(document).__name__}")
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def _given(**values: Any) -> Dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _batches(jobs: Iterable[Dict[str, Any]], most: int = 1000) -> Iterator[Sequence[Dict[str, Any]]]:
    batch: List[Dict[str, Any]] = []
    for job in jobs:
        batch.append(job)
        if len(batch) == most:
            yield batch
            batch = []
    if batch:
        yield batch
