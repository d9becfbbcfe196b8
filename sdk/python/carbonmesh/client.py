"""A client of a cluster: enqueues jobs through any node, waits for them, changes them.

It needs nothing but the standard library. Jobs are enqueued again if no answer came, as each has an
idempotency key, given or made here; changes of jobs are not, as they may have been made.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ipaddress
import json
import os
import random
import re
import ssl
import time
import uuid
from datetime import datetime
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple, Type, Union, overload
from urllib.parse import quote, urlencode, urlsplit

from .phase import duration
from .pipeline import Pipeline

DEFAULT_URL = "http://127.0.0.1:7400"

#: How long one request waits for a job's end, in seconds: short enough to notice a lost node.
_WAIT_STEP = 30.0

#: How long a node may take to answer, beside what it was told to wait, in seconds.
_ANSWER_TIME = 30.0

#: How long a connection may take: a node that is there answers at once.
_CONNECT_TIME = 5.0

#: How long a pause between two tries may become, in seconds.
_LONGEST_PAUSE = 5.0

#: What goes in one request of many, at most; and how long the first may wait for the last, in seconds.
_BATCH_JOBS = 1000
_BATCH_BYTES = 4 << 20
_BATCH_TIME = 0.2

_ENDS = ("succeeded", "dead", "cancelled")

#: A length of time: seconds, or a text such as ``"1h 30m"``.
Time = Union[float, str]


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
    def title(self) -> str:
        """The kind in words."""
        return str(self.problem.get("title", ""))

    @property
    def detail(self) -> str:
        """What was wrong this time, and the way out."""
        return str(self.problem.get("detail", ""))

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
    call goes on trying once nodes are busy, away or without a coordinator. Threads may share it.

    Nodes elsewhere speak HTTPS and ask who calls: ``token``, or ``token_file`` that holds it. Trusted are
    nodes whose certificates ``ca_file`` has signed (by default, those that the system trusts), or one of
    the ``fingerprint``s that they print when they are ready, apart by commas. ``certificate`` is the
    files of a certificate to show and of its key. What is not given is taken from the environment, as the
    ``carbonmesh`` program does: ``CARBONMESH_TOKEN``, ``CARBONMESH_TOKEN_FILE``, ``CARBONMESH_CA_FILE``,
    ``CARBONMESH_TLS_FINGERPRINT``, ``CARBONMESH_CLIENT_CERT`` and ``CARBONMESH_CLIENT_KEY``.
    """

    def __init__(
        self,
        *urls: str,
        patience: float = 30.0,
        token: Optional[str] = None,
        token_file: Optional[str] = None,
        ca_file: Optional[str] = None,
        fingerprint: Optional[str] = None,
        certificate: Optional[Tuple[str, str]] = None,
    ) -> None:
        given = urls or (os.environ.get("CARBONMESH_API", DEFAULT_URL),)
        self._urls = [url.rstrip("/") for url in given]
        for url in self._urls:
            if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
                raise ValueError(f"{url!r} is no address of a node: write {DEFAULT_URL}")
        self._patience = patience
        self._trust = _Trust(ca_file, fingerprint, certificate)
        self._token = _token(token, token_file)
        if self._token is not None:
            for url in self._urls:
                if urlsplit(url).scheme != "https" and not _is_near(urlsplit(url).hostname or ""):
                    raise ValueError(f"{url!r}: a token is not sent there, as everybody on the way could read it")

    # Jobs.

    @overload
    def enqueue(
        self, pipeline: str, instructions: Dict[str, Any], *, wait: None = None, **options: Any
    ) -> str: ...

    @overload
    def enqueue(
        self, pipeline: str, instructions: Dict[str, Any], *, wait: Time, **options: Any
    ) -> Dict[str, Any]: ...

    def enqueue(
        self,
        pipeline: str,
        instructions: Dict[str, Any],
        *,
        wait: Optional[Time] = None,
        key: Optional[str] = None,
        traceparent: Optional[str] = None,
        **options: Any,
    ) -> Union[str, Dict[str, Any]]:
        """Enqueues a job; it is on disk when this returns its id.

        With ``wait``, returns the job once it has ended, or raises ``TimeOver`` as ``wait`` does.
        The options: ``delay`` and ``timeout`` are seconds or texts such as ``"10m"``; ``run_at`` and
        ``deadline`` are moments, as texts (RFC 3339) or as ``datetime`` with a time zone; ``priority`` is
        from -100 to 100. ``traceparent`` is the span that it is enqueued within (W3C Trace Context).
        """
        # Asked again after a lost answer, it is the same job.
        headers = {"Idempotency-Key": uuid.uuid4().hex if key is None else key}
        headers.update(_given(traceparent=traceparent))
        path, query = _path("pipelines", pipeline, "jobs"), _options(**options)
        job = str(self._call("POST", path, query, _instructions(instructions), headers)["id"])
        return job if wait is None else self.wait(job, wait)

    def enqueue_many(
        self,
        pipeline: str,
        jobs: Iterable[Dict[str, Any]],
        *,
        key: Optional[str] = None,
        **options: Any,
    ) -> Iterator[Dict[str, Any]]:
        """Enqueues jobs as they come, and yields an answer for each, in their order.

        ``key`` names the field of each that is its idempotency key; only with it may all of it be
        done again after a failure. An answer has ``line``, from 1, and ``id`` or ``error``. Up to 1,000
        jobs go in one request; the options are those of ``enqueue``.
        """
        query, before = {**_options(**options), **_given(key=key)}, 0
        for batch in _batches(jobs):
            for answer in self._enqueue_all(_path("pipelines", pipeline, "jobs"), query, batch):
                yield {**answer, "line": answer["line"] + before}
            before += len(batch)

    def _enqueue_all(
        self, path: str, query: Dict[str, Any], batch: List[bytes]
    ) -> List[Dict[str, Any]]:
        """The answers to a batch; what nodes were too busy for is sent again while there is patience."""
        answers: Dict[int, Dict[str, Any]] = {}
        open_lines, tries = list(range(1, len(batch) + 1)), _Tries(self._patience)
        headers, keyed = {"Content-Type": "application/x-ndjson"}, "key" in query
        while open_lines:
            body = b"".join(batch[line - 1] for line in open_lines)
            text = self._exchange("POST", path, query, body, headers, again=keyed)
            found = [json.loads(line) for line in text.splitlines()]
            if [answer.get("line") for answer in found] != list(range(1, len(open_lines) + 1)):
                raise CarbonMeshError(f"{len(open_lines)} jobs were sent, and not all were answered")
            for line, answer in zip(open_lines, found):
                answers[line] = {**answer, "line": line}
            refused = [line for line in open_lines if _may_go_again(answers[line], keyed)]
            problem = answers[refused[0]]["error"] if refused else {}
            if refused and not tries.pause(float(problem.get("retry_after_s") or 0)):
                break
            open_lines = refused
        return [answers[line] for line in sorted(answers)]

    def job(self, job: str) -> Dict[str, Any]:
        """Where a job stands."""
        return self._call("GET", _path("jobs", job))

    def wait(self, job: str, timeout: Optional[Time] = None) -> Dict[str, Any]:
        """Waits for a job's end, and returns it. Raises ``TimeOver`` after so many seconds."""
        end = None if timeout is None else time.monotonic() + _seconds(timeout)
        while True:
            left = _WAIT_STEP if end is None else min(_WAIT_STEP, max(0.0, end - time.monotonic()))
            found = self._call("GET", _path("jobs", job), {"wait": duration(left)}, waits=left)
            if found["state"] in _ENDS:
                return found
            if end is not None and time.monotonic() >= end:
                raise TimeOver(found)

    def explain(self, job: str) -> Dict[str, Any]:
        """Why a job waits."""
        return self._call("GET", _path("jobs", job, "explain"))

    def jobs(self, pipeline: str, state: Optional[str] = None) -> Iterator[Dict[str, Any]]:
        """The jobs of a pipeline, page by page."""
        after = None
        while True:
            query = _given(state=state, after=after, limit=1000)
            page = self._call("GET", _path("pipelines", pipeline, "jobs"), query)
            yield from page["jobs"]
            after = page.get("next")
            if after is None:
                return

    def events(
        self,
        pipeline: Optional[str] = None,
        *,
        job: Optional[str] = None,
        kinds: Iterable[str] = (),
        after: Optional[str] = None,
        follow: bool = True,
    ) -> Iterator[Dict[str, Any]]:
        """What happens to a pipeline and its jobs, or without one in the cluster, as it happens.

        Begins with the oldest event that is kept, or behind the one with the token ``after``
        (``"latest"``: with what happens from now on), and never ends, unless not to ``follow``. A
        connection that breaks is made again, to whichever node answers; what cannot be told any
        more then comes as an event of kind ``gap``. Raises ``Unreachable`` once no node has
        answered for as long as the client's patience.
        """
        path = _path(*(("pipelines", pipeline, "events") if pipeline is not None else ("events",)))
        wanted = ",".join(kinds) or None
        tries, turn = _Tries(self._patience), 0
        while True:
            url = self._urls[turn % len(self._urls)]
            query = _given(job=job, kinds=wanted, after=after, follow=str(follow).lower())
            failure: CarbonMeshError
            try:
                for event in _stream(url, path + "?" + urlencode(query)):
                    tries = _Tries(self._patience)
                    after = event.get("token") or after
                    if event["kind"] == "end":
                        break
                    if event["kind"] != "alive":
                        yield event
                else:
                    if not follow:
                        return
                failure = Unreachable(f"the stream of {url} ended")
            except Refused as refused:
                if refused.status not in (429, 503, 504):
                    raise
                failure = refused
            except (OSError, http.client.HTTPException, ValueError) as error:
                failure = Unreachable(f"the connection to {url} broke: {error!r}")
            turn += 1
            if not tries.pause(0.0):
                raise failure

    def logs(self, job: str) -> List[Dict[str, Any]]:
        """What is kept of a job's logs: for each attempt its ``phase``, ``attempt`` and ``lines``.

        What comes next is told by ``events``, in those of kind ``log``.
        """
        return list(self._call("GET", _path("jobs", job, "logs"))["attempts"])

    def cancel(self, job: str, reason: Optional[str] = None) -> None:
        """Ends a job."""
        self._call("POST", _path("jobs", job, "cancel"), {}, _given(reason=reason))

    def retry(self, job: str, *, from_start: bool = False) -> None:
        """Runs a dead or cancelled job again. Asked once: see ``Unreachable``."""
        document = {"from_start": from_start}
        self._call("POST", _path("jobs", job, "retry"), {}, document, again=False)

    def discard(self, job: str) -> None:
        """Forgets a finished job. Asked once: see ``Unreachable``."""
        self._call("DELETE", _path("jobs", job), again=False)

    def signal(
        self,
        job: str,
        name: str,
        data: Optional[Dict[str, Any]] = None,
        *,
        fail: Optional[str] = None,
    ) -> None:
        """Gives a job the signal that a phase of it waits for; ``fail`` fails it for that reason.

        Asked once: see ``Unreachable``.
        """
        path = _path("jobs", job, "signals", name)
        self._call("POST", path, _given(fail=fail), _instructions(data or {}), again=False)

    # The cluster.

    def apply(self, pipeline: Union[Dict[str, Any], Type[Pipeline]]) -> Dict[str, Any]:
        """Makes a pipeline known, or changes it for jobs to come."""
        document = pipeline if isinstance(pipeline, dict) else pipeline.document()
        if not isinstance(document.get("name"), str):
            raise ValueError("name: the pipeline document has none")
        return self._call("PUT", _path("pipelines", document["name"]), {}, document)

    def pipelines(self) -> List[Dict[str, Any]]:
        """All pipelines."""
        return list(self._call("GET", _path("pipelines"))["pipelines"])

    def status(self) -> Dict[str, Any]:
        """The cluster at a glance."""
        return self._call("GET", _path("status"))

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
        headers = {**kind, **(headers or {})}
        text = self._exchange(method, path, query or {}, body, headers, waits, again)
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
        tries, turn, at_least = _Tries(self._patience), 0, 0.0
        if self._token is not None:
            headers = {**headers, "Authorization": f"Bearer {self._token}"}
        while True:
            url = self._urls[turn % len(self._urls)]
            turn += 1
            failure: CarbonMeshError
            try:
                status, retry_after, text = _ask(
                    url, method, target, body, headers, waits, self._trust
                )
            except _NotConnected as error:
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
                at_least = max(at_least, retry_after)
            # Others may do better at once, and each is asked; nodes that were found busy together may not.
            if turn % len(self._urls) == 0:
                if not tries.pause(at_least):
                    raise failure
                at_least = 0.0


class _Tries:
    """Longer and longer pauses between tries, no two clients' alike, until the patience is over."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._end: Optional[float] = None
        self._pause = 0.05

    def pause(self, at_least: float) -> bool:
        """Waits, unless the patience would be over then; it begins with the first failure."""
        if self._end is None:
            self._end = time.monotonic() + self._patience
        pause = at_least + self._pause * random.uniform(0.5, 1.0)
        if time.monotonic() + pause >= self._end:
            return False
        time.sleep(pause)
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        return True


class PipelineClient:
    """The client of CarbonTube: ``enqueue_job`` says whether it was done, and what became of it."""

    def __init__(self, *urls: str, hwm: int = 10) -> None:
        # Addresses of brokers, and how much may wait for them, mean nothing any more.
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


class _NotConnected(Exception):
    """Nothing was sent."""


class _Trust:
    """Which nodes are the right ones, and how this client shows who it is."""

    def __init__(
        self,
        ca_file: Optional[str],
        fingerprint: Optional[str],
        certificate: Optional[Tuple[str, str]],
    ) -> None:
        given = os.environ.get
        if ca_file is None and fingerprint is None:
            ca_file, fingerprint = given("CARBONMESH_CA_FILE"), given("CARBONMESH_TLS_FINGERPRINT")
        if ca_file and fingerprint:
            raise ValueError("ca_file, fingerprint: give one of them")
        self._ca_file = ca_file or None
        self._fingerprints = [_fingerprint(one) for one in (fingerprint or "").split(",") if one.strip()]
        if certificate is None and given("CARBONMESH_CLIENT_CERT"):
            certificate = (os.environ["CARBONMESH_CLIENT_CERT"], given("CARBONMESH_CLIENT_KEY") or "")
        self._certificate = certificate
        self._context: Optional[ssl.SSLContext] = None

    def context(self) -> ssl.SSLContext:
        """Made when it is needed first: reading what the system trusts takes a while."""
        if self._context is None:
            context = ssl.create_default_context(cafile=self._ca_file)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self._fingerprints:
                # The certificate itself is compared, which says more than its name and signer.
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if self._certificate is not None:
                context.load_cert_chain(*self._certificate)
            self._context = context
        return self._context

    def check(self, connection: ssl.SSLSocket) -> None:
        """Refuses a node whose certificate is another."""
        if not self._fingerprints:
            return
        found = hashlib.sha256(connection.getpeercert(True) or b"").digest()
        if not any(hmac.compare_digest(found, one) for one in self._fingerprints):
            raise ssl.SSLCertVerificationError(f"the node's certificate is another one: {found.hex()}")


def _fingerprint(text: str) -> bytes:
    digits = re.sub(r"^sha256", "", text.strip().lower().replace(":", ""))
    if not re.fullmatch("[0-9a-f]{64}", digits):
        raise ValueError(f"fingerprint: {text!r} is none: give the 64 hexadecimal digits that a node prints")
    return bytes.fromhex(digits)


def _token(token: Optional[str], token_file: Optional[str]) -> Optional[str]:
    if token is None and token_file is None:
        token, token_file = os.environ.get("CARBONMESH_TOKEN"), os.environ.get("CARBONMESH_TOKEN_FILE")
    if token and token_file:
        raise ValueError("token, token_file: give one of them")
    if token_file:
        with open(token_file, encoding="utf-8") as file:
            token = file.read()
    token = (token or "").strip()
    if not re.fullmatch("[!-~]*", token):
        raise ValueError("token: it has characters that no token has")
    return token or None


def _is_near(host: str) -> bool:
    """Whether what is sent there stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _ask(
    url: str,
    method: str,
    target: str,
    body: Optional[bytes],
    headers: Dict[str, str],
    waits: float,
    trust: "_Trust",
) -> Tuple[int, float, bytes]:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(host, port, timeout=_CONNECT_TIME, context=trust.context())
    else:
        connection = http.client.HTTPConnection(host, port, timeout=_CONNECT_TIME)
    try:
        try:
            connection.connect()
            # Before anything is sent.
            if isinstance(connection.sock, ssl.SSLSocket):
                trust.check(connection.sock)
        except OSError as error:
            raise _NotConnected(str(error)) from error
        connection.sock.settimeout(_ANSWER_TIME + waits)
        connection.request(method, parts.path + target, body, headers)
        answer = connection.getresponse()
        retry_after = answer.getheader("Retry-After") or ""
        seconds = float(retry_after) if retry_after.isdigit() else 0.0
        return answer.status, seconds, answer.read()
    finally:
        connection.close()


def _stream(url: str, target: str) -> Iterator[Dict[str, Any]]:
    """The lines of a stream of events, which shows every few seconds that it lives."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=_CONNECT_TIME)
    try:
        connection.connect()
        connection.sock.settimeout(_ANSWER_TIME)
        connection.request("GET", parts.path + target, headers={"Accept": "application/x-ndjson"})
        answer = connection.getresponse()
        if answer.status >= 400:
            raise Refused(_problem(answer.status, answer.read()))
        while True:
            line = answer.readline()
            if not line:
                return
            if line.strip():
                yield dict(json.loads(line))
    finally:
        connection.close()


def _may_go_again(answer: Dict[str, Any], keyed: bool) -> bool:
    status = (answer.get("error") or {}).get("status")
    return status in (429, 503) or (status == 504 and keyed)


def _problem(status: int, text: bytes) -> Dict[str, Any]:
    try:
        problem = json.loads(text)
    except ValueError:
        problem = None
    if isinstance(problem, dict):
        return {"status": status, **problem}
    detail = text.decode("utf-8", "replace")[:200]
    return {"status": status, "title": "no CarbonMesh node", "detail": detail}


def _path(*parts: str) -> str:
    return "/".join(("/v1", *(quote(part, safe="") for part in parts)))


def _json(document: Dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def _instructions(given: Dict[str, Any]) -> Dict[str, Any]:
    if not isinstance(given, dict):
        raise TypeError(f"a job's instructions are a dict, not {type(given).__name__}")
    return given


def _given(**values: Any) -> Dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _seconds(value: Time) -> float:
    return int(duration(value)[:-2]) / 1000


def _moment(name: str, value: Union[str, datetime]) -> str:
    if isinstance(value, str):
        return value
    if value.tzinfo is None:
        raise ValueError(f"{name}: {value} has no time zone: give it one, such as timezone.utc")
    return value.isoformat()


def _options(
    *,
    delay: Optional[Time] = None,
    run_at: Union[None, str, datetime] = None,
    timeout: Optional[Time] = None,
    deadline: Union[None, str, datetime] = None,
    priority: Optional[int] = None,
) -> Dict[str, Any]:
    return _given(
        delay=None if delay is None else duration(delay),
        run_at=None if run_at is None else _moment("run_at", run_at),
        timeout=None if timeout is None else duration(timeout),
        deadline=None if deadline is None else _moment("deadline", deadline),
        priority=priority,
    )


def _batches(jobs: Iterable[Dict[str, Any]]) -> Iterator[List[bytes]]:
    """Jobs as lines, so many as come in a short time."""
    batch: List[bytes] = []
    size, since = 0, 0.0
    for job in jobs:
        line = _json(_instructions(job)) + b"\n"
        if batch and size + len(line) > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        if not batch:
            since = time.monotonic()
        batch.append(line)
        size += len(line)
        if len(batch) == _BATCH_JOBS or time.monotonic() - since > _BATCH_TIME:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
