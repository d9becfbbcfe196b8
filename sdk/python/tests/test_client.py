"""The client against a node that answers as it is told."""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import subprocess
import tempfile
import threading
import unittest
import uuid
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Callable, Dict, List, Tuple
from unittest import mock

from carbonmesh import Client, Phase, Pipeline, PipelineClient, Refused, TimeOver, Unreachable


class Node:
    """Answers requests in turn, and notes them."""

    def __init__(self, *answers: Tuple[int, Any]) -> None:
        self.asked: List[Dict[str, Any]] = []
        left = list(answers)
        node = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = dict(self.headers.items())
                said = {"method": self.command, "path": self.path, "body": body, "headers": headers}
                node.asked.append(said)
                status, document = left.pop(0) if len(left) > 1 else left[0]
                if status == 0:
                    self.close_connection = True
                    return
                text = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = do_DELETE = answer

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class ClientTest(unittest.TestCase):
    def node(self, *answers: Tuple[int, Any]) -> Node:
        node = Node(*answers)
        self.addCleanup(node.close)
        return node

    def test_a_job_is_enqueued_once_whatever_happens_to_answers(self) -> None:
        busy = (429, {"type": "urn:carbonmesh:problem:busy", "detail": "later"})
        node = self.node((0, None), busy, (202, {"id": "7"}))
        self.assertEqual(Client(node.url).enqueue("p q", {"a": 1}, delay="10s", priority=3), "7")
        self.assertEqual(len(node.asked), 3)
        keys = {it["headers"]["Idempotency-Key"] for it in node.asked}
        self.assertEqual(len(keys), 1)
        self.assertEqual(node.asked[0]["path"], "/v1/pipelines/p%20q/jobs?delay=10000ms&priority=3")
        self.assertEqual(json.loads(node.asked[0]["body"]), {"a": 1})

    def test_a_job_is_enqueued_within_a_trace(self) -> None:
        parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        node = self.node((202, {"id": "7"}), (202, {"id": "8"}))
        client = Client(node.url)
        client.enqueue("p", {}, traceparent=parent)
        client.enqueue("p", {})
        given = [it["headers"].get("traceparent") for it in node.asked]
        self.assertEqual(given, [parent, None])

    def test_refusals_say_why(self) -> None:
        kind = "urn:carbonmesh:problem:unknown-pipeline"
        node = self.node((404, {"type": kind, "detail": "no pipeline p"}))
        with self.assertRaises(Refused) as caught:
            Client(node.url).enqueue("p", {})
        self.assertEqual((caught.exception.status, caught.exception.kind), (404, "unknown-pipeline"))
        self.assertEqual(str(caught.exception), "no pipeline p")
        self.assertEqual(len(node.asked), 1)

    def test_events_are_followed_over_broken_connections(self) -> None:
        def lines(*events: Dict[str, Any]) -> bytes:
            return b"".join(json.dumps(event).encode() + b"\n" for event in events)

        first = lines({"kind": "alive", "token": "1"}, {"kind": "enqueued", "token": "2"})
        second = lines({"kind": "succeeded", "token": "3"}, {"kind": "end", "reason": "stopping"})
        third = lines({"kind": "gap", "token": "9", "reason": "another"})
        busy = (503, {"type": "urn:carbonmesh:problem:stopping", "detail": "later"})
        node = self.node((200, first), (0, None), (200, second), busy, (200, third))
        events = Client(node.url).events("p", job="7", kinds=["enqueued", "succeeded"])
        found = [next(events)["kind"] for _ in range(3)]
        self.assertEqual(found, ["enqueued", "succeeded", "gap"])
        paths = [it["path"] for it in node.asked]
        self.assertEqual(
            paths[0], "/v1/pipelines/p/events?job=7&kinds=enqueued%2Csucceeded&follow=true"
        )
        self.assertTrue(all("&after=2&" in path for path in paths[1:3]), paths)
        self.assertTrue(all("&after=3&" in path for path in paths[3:5]), paths)

    def test_events_end_if_they_are_not_followed_and_refusals_are_raised(self) -> None:
        node = self.node((200, b'{"kind":"node_joined","token":"1"}\n'))
        events = list(Client(node.url).events(follow=False))
        self.assertEqual([event["kind"] for event in events], ["node_joined"])
        self.assertEqual(node.asked[0]["path"], "/v1/events?follow=false")
        kind = "urn:carbonmesh:problem:unknown-pipeline"
        node = self.node((404, {"type": kind, "detail": "no pipeline p"}))
        with self.assertRaises(Refused):
            next(Client(node.url).events("p"))
        with self.assertRaises(Unreachable):
            next(Client("http://127.0.0.1:9", patience=0.1).events("p"))

    def test_logs_are_shown_by_attempt(self) -> None:
        attempts = [{"phase": "s", "attempt": 1, "lines": []}]
        node = self.node((200, {"attempts": attempts, "next": "7"}))
        self.assertEqual(Client(node.url).logs("j"), attempts)
        self.assertEqual(node.asked[0]["path"], "/v1/jobs/j/logs")

    def test_another_node_is_asked_if_one_is_away(self) -> None:
        gone = Node((200, {}))
        gone.close()
        # Nothing was sent to it, so that even what may not be done twice goes to the other.
        other = self.node((200, {"changed": 1}))
        Client(gone.url, other.url).retry("7")
        self.assertEqual(len(other.asked), 1)
        node = self.node((200, {"id": "7", "state": "dead"}))
        self.assertEqual(Client(gone.url, node.url).wait("7")["state"], "dead")
        with self.assertRaises(Unreachable):
            Client(gone.url, patience=0.1).status()

    def test_a_wait_may_be_over_first(self) -> None:
        node = self.node((200, {"id": "7", "state": "running"}))
        with self.assertRaises(TimeOver) as caught:
            Client(node.url).wait("7", timeout=0)
        self.assertEqual(caught.exception.job["state"], "running")

    def test_many_jobs_are_answered_in_order(self) -> None:
        answers = b'{"line": 1, "id": "a"}\n{"line": 2, "error": {"detail": "no"}}\n'
        node = self.node((200, answers))
        found = list(Client(node.url).enqueue_many("p", ({"n": n} for n in range(2)), key="n"))
        self.assertEqual((found[0]["id"], found[1]["error"]["detail"]), ("a", "no"))
        self.assertEqual(node.asked[0]["headers"]["Content-Type"], "application/x-ndjson")
        self.assertEqual(node.asked[0]["body"], b'{"n":0}\n{"n":1}\n')
        # Without keys, some of them may be there twice if they were sent again.
        node = self.node((0, None))
        with self.assertRaises(Unreachable):
            list(Client(node.url).enqueue_many("p", [{}]))
        self.assertEqual(len(node.asked), 1)

    def test_only_what_nodes_were_too_busy_for_is_sent_again(self) -> None:
        def answers(*lines: Any) -> bytes:
            return b"".join(json.dumps(line).encode() + b"\n" for line in lines)

        busy = {"status": 429, "detail": "later"}
        first = answers({"line": 1, "id": "a"}, {"line": 2, "error": busy}, {"line": 3, "id": "c"})
        node = self.node((200, first), (200, answers({"line": 1, "id": "b"})))
        found = list(Client(node.url).enqueue_many("p", ({"n": n} for n in range(3))))
        self.assertEqual([(it["line"], it["id"]) for it in found], [(1, "a"), (2, "b"), (3, "c")])
        self.assertEqual([it["body"].count(b"\n") for it in node.asked], [3, 1])
        self.assertEqual(node.asked[1]["body"], b'{"n":1}\n')
        # Whoever has no patience gets the refusals.
        node = self.node((200, answers({"line": 1, "error": busy})))
        [refused] = Client(node.url, patience=0).enqueue_many("p", [{}])
        self.assertEqual(refused["error"], busy)
        # Lines count on from one request to the next.
        thousand = answers(*({"line": line, "id": "x"} for line in range(1, 1001)))
        node = self.node((200, thousand), (200, answers({"line": 1, "id": "y"})))
        found = list(Client(node.url).enqueue_many("p", [{}] * 1001))
        self.assertEqual([it["line"] for it in found[-2:]], [1000, 1001])

    def test_changes_that_may_have_been_made_are_not_asked_for_again(self) -> None:
        changes: List[Callable[[Client], None]] = [
            lambda client: client.retry("7"),
            lambda client: client.discard("7"),
            lambda client: client.signal("7", "s"),
        ]
        for change in changes:
            node = self.node((0, None))
            with self.assertRaises(Unreachable):
                change(Client(node.url))
            self.assertEqual(len(node.asked), 1)

    def test_signals_say_what_the_phase_gives_or_why_it_fails(self) -> None:
        node = self.node((200, {"changed": 1}))
        Client(node.url).signal("7", "approval", {"by": "me"})
        Client(node.url).signal("7", "approval", fail="too late")
        self.assertEqual(node.asked[0]["path"], "/v1/jobs/7/signals/approval")
        self.assertEqual(json.loads(node.asked[0]["body"]), {"by": "me"})
        self.assertEqual(node.asked[1]["path"], "/v1/jobs/7/signals/approval?fail=too+late")

    def test_a_job_may_be_waited_for_at_once(self) -> None:
        node = self.node((202, {"id": "7"}), (200, {"id": "7", "state": "succeeded"}))
        self.assertEqual(Client(node.url).enqueue("p", {}, wait="5s")["state"], "succeeded")
        self.assertTrue(node.asked[1]["path"].startswith("/v1/jobs/7?wait="))

    def test_moments_have_time_zones(self) -> None:
        node = self.node((202, {"id": "7"}))
        moment = datetime(2030, 1, 31, 12, tzinfo=timezone.utc)
        Client(node.url).enqueue("p", {}, run_at=moment, timeout=1.5)
        self.assertIn("run_at=2030-01-31T12%3A00%3A00%2B00%3A00&timeout=1500ms", node.asked[0]["path"])
        for wrong in ({"run_at": datetime(2030, 1, 31)}, {"delay": "soon"}):
            with self.assertRaises(ValueError):
                Client(node.url).enqueue("p", {}, **wrong)

    def test_pages_of_jobs_follow_each_other(self) -> None:
        node = self.node((200, {"jobs": [{"id": "1"}], "next": "1"}), (200, {"jobs": [{"id": "2"}]}))
        self.assertEqual([job["id"] for job in Client(node.url).jobs("p", state="dead")], ["1", "2"])
        self.assertTrue(node.asked[1]["path"].endswith("?state=dead&after=1&limit=1000"))

    def test_pipelines_are_applied_as_documents(self) -> None:
        class A(Phase):
            job_type = "a"

        class P(Pipeline):
            name = "p"
            phases = [A]

        node = self.node((200, {"name": "p"}))
        Client(node.url).apply(P)
        self.assertEqual(json.loads(node.asked[0]["body"]), {"name": "p", "phases": ["a"]})
        self.assertEqual((node.asked[0]["method"], node.asked[0]["path"]), ("PUT", "/v1/pipelines/p"))

    def test_the_client_of_carbontube(self) -> None:
        node = self.node((202, {"id": "7"}), (404, {"detail": "no pipeline"}))
        client = PipelineClient(node.url)
        done, payload = client.enqueue_job({"name": "p", "instructions": {"size": 1}})
        self.assertEqual((done, payload["job_id"], payload["name"]), (True, "7", "p"))
        done, payload = client.enqueue_job({"name": "p", "instructions": {}})
        self.assertEqual((done, payload["error"]), (False, "no pipeline"))
        lacking = (False, {"error": "the job has no 'instructions'"})
        self.assertEqual(client.enqueue_job({"name": "p"}), lacking)
        # Brokers' addresses mean this machine's node.
        PipelineClient("tcp://127.0.0.1:5050", hwm=10).connect()

    def test_a_token_is_shown_to_nodes_and_to_nobody_on_the_way(self) -> None:
        node = self.node((200, {"ok": 1}))
        Client(node.url, token="cmt_abc").status()
        self.assertEqual(node.asked[0]["headers"]["Authorization"], "Bearer cmt_abc")
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "token")
            with open(path, "w", encoding="utf-8") as file:
                file.write("cmt_def\n")
            with mock.patch.dict(os.environ, {"CARBONMESH_TOKEN_FILE": path}):
                Client(node.url).status()
        self.assertEqual(node.asked[1]["headers"]["Authorization"], "Bearer cmt_def")
        Client(node.url).status()
        self.assertNotIn("Authorization", node.asked[2]["headers"])
        wrong: List[Callable[[], Client]] = [
            lambda: Client("http://10.0.0.1:7400", token="cmt_abc"),
            lambda: Client("http://localhost.evil.example", token="cmt_abc"),
            lambda: Client(node.url, token="a\r\nX: y"),
            lambda: Client(node.url, token="a", token_file="b"),
            lambda: Client(node.url, fingerprint="ab"),
            lambda: Client(node.url, fingerprint="ab" * 32, ca_file="ca"),
        ]
        for make in wrong:
            with self.assertRaises(ValueError):
                make()

    def test_a_node_with_another_certificate_gets_no_request(self) -> None:
        node = self.node((200, {"ok": 1}))
        with tempfile.TemporaryDirectory() as folder:
            key, cert = os.path.join(folder, "key"), os.path.join(folder, "cert")
            made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
            made += ["-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=t"]
            made += ["-addext", "subjectAltName=IP:127.0.0.1"]
            try:
                subprocess.run(made, check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError):
                self.skipTest("there is no openssl that makes certificates")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(cert, key)
            node.server.socket = context.wrap_socket(node.server.socket, server_side=True)
            with open(cert, encoding="ascii") as file:
                der = ssl.PEM_cert_to_DER_cert(file.read())
            url, right = node.url.replace("http:", "https:"), hashlib.sha256(der).hexdigest()
            self.assertEqual(Client(url, fingerprint=f"{'ab' * 32},{right}").status(), {"ok": 1})
            self.assertEqual(Client(url, ca_file=cert).status(), {"ok": 1})
            for options in ({"fingerprint": "ab" * 32}, {}):
                with self.assertRaises(Unreachable):
                    Client(url, patience=0, token="cmt_abc", **options).status()
        self.assertEqual(len(node.asked), 2)

    def test_wrong_addresses_are_named(self) -> None:
        with self.assertRaises(ValueError):
            Client("localhost:7400")
        with self.assertRaises(TypeError):
            Client("http://127.0.0.1:1").enqueue("p", [1])  # type: ignore[call-overload]


@unittest.skipUnless(os.environ.get("CARBONMESH_TEST_API"), "CARBONMESH_TEST_API names no node")
class NodeTest(unittest.TestCase):
    """Against a real node, which needs to run no phases."""

    def setUp(self) -> None:
        self.client = Client(os.environ["CARBONMESH_TEST_API"])
        self.pipeline = f"test-{uuid.uuid4().hex[:8]}"
        signal = {"name": "asked", "wait_for": "answer"}
        self.client.apply({"name": self.pipeline, "replicas": 1, "phases": [signal]})

    def test_a_job_from_its_begin_to_its_end(self) -> None:
        job = self.client.enqueue(self.pipeline, {"a": 1}, key="k", delay=0, timeout="1h", priority=-5)
        self.assertEqual(self.client.enqueue(self.pipeline, {"a": 1}, key="k"), job)
        with self.assertRaises(TimeOver):
            self.client.wait(job, 0.05)
        self.client.signal(job, "answer", {"b": 2})
        self.assertEqual(self.client.wait(job, 30)["result"], {"a": 1, "b": 2})
        self.assertEqual([one["id"] for one in self.client.jobs(self.pipeline, "succeeded")], [job])
        self.client.discard(job)
        with self.assertRaises(Refused) as caught:
            self.client.job(job)
        self.assertEqual(caught.exception.kind, "unknown-job")

    def test_jobs_are_cancelled_and_tried_again(self) -> None:
        moment = datetime.now(timezone.utc) + timedelta(hours=1)
        job = self.client.enqueue(self.pipeline, {}, run_at=moment, deadline=moment + timedelta(hours=1))
        self.client.cancel(job, "for the test")
        self.assertEqual(self.client.job(job)["state"], "cancelled")
        self.client.retry(job, from_start=True)
        self.assertNotEqual(self.client.explain(job), {})
        self.client.cancel(job)

    def test_many(self) -> None:
        jobs = [{"n": str(n)} for n in range(2500)] + [{"m": "no key"}]
        for expected in (False, True):
            found = list(self.client.enqueue_many(self.pipeline, jobs, key="n", priority=1))
            self.assertEqual([answer["line"] for answer in found], list(range(1, 2502)))
            self.assertEqual({answer["existed"] for answer in found[:-1]}, {expected})
            self.assertEqual(found[-1]["error"]["status"], 422)
        self.assertEqual(len({one["id"] for one in self.client.jobs(self.pipeline)}), 2500)

    def test_the_cluster(self) -> None:
        names = [one["name"] for one in self.client.pipelines()]
        self.assertIn(self.pipeline, names)
        self.assertNotEqual(self.client.status(), {})
        done, payload = PipelineClient(os.environ["CARBONMESH_TEST_API"]).enqueue_job(
            {"name": "nobody-has-this", "instructions": {}}
        )
        self.assertEqual((done, payload["status"]), (False, 404))


if __name__ == "__main__":
    unittest.main()
