"""The client against a node that answers as it is told."""

from __future__ import annotations

import json
import threading
import unittest
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Dict, List, Tuple

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
        self.assertEqual(node.asked[0]["path"], "/v1/pipelines/p%20q/jobs?delay=10s&priority=3")
        self.assertEqual(json.loads(node.asked[0]["body"]), {"a": 1})

    def test_refusals_say_why(self) -> None:
        kind = "urn:carbonmesh:problem:unknown-pipeline"
        node = self.node((404, {"type": kind, "detail": "no pipeline p"}))
        with self.assertRaises(Refused) as caught:
            Client(node.url).enqueue("p", {})
        self.assertEqual((caught.exception.status, caught.exception.kind), (404, "unknown-pipeline"))
        self.assertEqual(str(caught.exception), "no pipeline p")
        self.assertEqual(len(node.asked), 1)

    def test_another_node_is_asked_if_one_is_away(self) -> None:
        gone = Node((200, {}))
        gone.close()
        node = self.node((200, {"id": "7", "state": "dead"}))
        self.assertEqual(Client(gone.url, node.url).wait("7")["state"], "dead")
        with self.assertRaises(Unreachable):
            Client(gone.url, patience=0.1).status()

    def test_what_must_not_be_done_twice_is_asked_once(self) -> None:
        node = self.node((0, None))
        for call in (lambda c: c.signal("7", "go"), lambda c: c.retry("7"), lambda c: c.discard("7")):
            node.asked.clear()
            with self.assertRaises(Unreachable):
                call(Client(node.url))
            self.assertEqual(len(node.asked), 1)

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

    def test_pages_of_jobs_follow_each_other(self) -> None:
        node = self.node((200, {"jobs": [{"id": "1"}], "next": "1"}), (200, {"jobs": [{"id": "2"}]}))
        self.assertEqual([job["id"] for job in Client(node.url).jobs("p", state="dead")], ["1", "2"])
        self.assertTrue(node.asked[1]["path"].endswith("?state=dead&after=1"))

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
        self.assertEqual(client.enqueue_job({"name": "p"}), (False, {"error": "the job has no 'instructions'"}))

    def test_wrong_addresses_are_named(self) -> None:
        with self.assertRaises(ValueError):
            Client("localhost:7400")
        with self.assertRaises(TypeError):
            Client("http://127.0.0.1:1").enqueue("p", [1])  # type: ignore[arg-type]


if __name__ == "__main__":
    unittest.main()
