"""The phase host as a node sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import textwrap
import unittest
from pathlib import Path
from typing import Any, Dict, List

SDK = Path(__file__).resolve().parent.parent

HANDLERS = """
import asyncio, logging, os, subprocess, sys, threading, time
os.system('echo loading'); print('loading', flush=True)
from carbonmesh import Fatal, Phase, Pipeline, Retry, phase

class Double(Phase):
    job_type = 'double'
    def execute(self, instructions):
        print('not a frame')
        os.system('echo not a frame either')
        self.logger.warning('doubling %d', instructions['number'])
        return {'number': instructions['number'] * 2}

class Fails(Phase):
    job_type = 'fails'
    def execute(self, instructions):
        how = instructions['how']
        if how == 'fatal': raise Fatal('never')
        if how == 'later': raise Retry('busy', after=1.5)
        if how == 'exit': sys.exit(3)
        if how == 'list': return [1]
        if how == 'nan': return {'x': float('nan')}
        if how == 'object': return {'x': object()}
        if how == 'deep':
            deep = []
            for _ in range(100000): deep = [deep]
            return {'x': deep}
        if how == 'half': raise FileNotFoundError('no file \\udce9')
        raise ValueError('odd')

class Hooked(Phase):
    job_type = 'hooked'
    def execute(self, instructions):
        if instructions.get('fail'): raise ValueError('no')
    def on_started(self, instructions): self.logger.info('started')
    def on_finished(self, instructions, result): self.logger.info('finished %s', result)
    def on_failed(self, instructions, error): self.logger.info('failed %s', error); raise KeyError('hook')

class Awaited(Phase):
    job_type = 'awaited'
    async def execute(self, instructions):
        await asyncio.sleep(0)
        return {'awaited': True}

class Leaves(Phase):
    job_type = 'leaves'
    async def execute(self, instructions):
        sys.exit(3)

class Items(Phase):
    job_type = 'items'
    def execute(self, instructions):
        yield 1
        yield {'two': 2}

class AsyncItems(Phase):
    job_type = 'async-items'
    async def execute(self, instructions):
        yield 3

class Waits(Phase):
    job_type = 'waits'
    def execute(self, instructions):
        self.progress(0.5, 'half')
        while not self.cancelled:
            time.sleep(0.01)
        self.raise_if_cancelled()

@phase('plain')
def plain(instructions):
    return {'plain': instructions}

@phase('told')
def told(instructions, context):
    return {'job': context.job, 'attempt': context.attempt, 'timeout': context.timeout}

class Forks(Phase):
    job_type = 'forks'
    def execute(self, instructions):
        child = subprocess.Popen(['sh', '-c', 'cat; echo done'], stdout=subprocess.PIPE)
        return {'said': child.communicate()[0].decode().strip()}

class Both(Pipeline):
    name = 'both'
    backend = 'redis'
    phases = [Double, 'plain', {'name': 'told', 'max_attempts': 1}]
    options = {'replicas': 1}
"""


class Host:
    """A host that runs, and the node's side of its streams."""

    def __init__(self, text: str = HANDLERS, *arguments: str) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="carbonmesh-")
        path = Path(self.folder.name, "handlers.py")
        path.write_text(textwrap.dedent(text))
        self.log = open(Path(self.folder.name, "log"), "w+")
        self.child = subprocess.Popen(
            [sys.executable, "-m", "carbonmesh", str(path), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env={**os.environ, "PYTHONPATH": str(SDK)},
        )

    def next(self, *passed_over: str) -> Dict[str, Any]:
        """The next frame that is of none of these types."""
        assert self.child.stdout is not None
        while True:
            line = self.child.stdout.readline()
            assert line, self.logged()
            frame: Dict[str, Any] = json.loads(line)
            if frame["type"] not in passed_over:
                return frame

    def say(self, **frame: Any) -> None:
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps(frame, ensure_ascii=False).encode() + b"\n")
        self.child.stdin.flush()

    def give(self, id: int, phase: str, **instructions: Any) -> None:
        self.say(
            type="run", id=id, phase=phase, instructions=instructions, job="j", pipeline="p",
            step="s", attempt=1, token="t", idempotency_key="j/s", gives_items=True,
            timeout_ms=1500, unknown=[1],
        )

    def run(self, phase: str, **instructions: Any) -> Dict[str, Any]:
        self.ids = getattr(self, "ids", 100) + 1
        self.give(self.ids, phase, **instructions)
        return self.next("log")

    def logged(self) -> str:
        self.log.flush()
        return Path(self.log.name).read_text()

    def close(self) -> int:
        assert self.child.stdin is not None and self.child.stdout is not None
        self.child.stdin.close()
        code = self.child.wait(20)
        self.child.stdout.close()
        self.log.close()
        self.folder.cleanup()
        return code


class HostTest(unittest.TestCase):
    def host(self, *arguments: str) -> Host:
        host = Host(HANDLERS, *arguments)
        self.addCleanup(host.close)
        self.hello = host.next("log")
        host.say(type="welcome", protocol=1)
        host.say(type="weather")
        return host

    def test_hello_names_phases_and_pipelines(self) -> None:
        self.host()
        names = [phase["name"] for phase in self.hello["phases"]]
        self.assertEqual(names[:2], ["double", "fails"])
        self.assertEqual((self.hello["protocol"], self.hello["concurrency"]), (1, 1))
        told = {"name": "told", "max_attempts": 1}
        both = {"name": "both", "replicas": 1, "phases": ["double", "plain", told]}
        self.assertEqual(self.hello["pipelines"], [both])

    def test_what_handlers_print_is_no_frame(self) -> None:
        host = self.host()
        host.give(7, "double", number=4)
        log = host.next()
        self.assertEqual((log["type"], log["level"], log["id"]), ("log", "warning", 7))
        self.assertEqual(host.next(), {"type": "result", "id": 7, "result": {"number": 8}})
        self.assertIn("not a frame either", host.logged())

    def test_ends_say_whether_to_try_again(self) -> None:
        host = self.host()
        odd = host.run("fails", how="odd")
        self.assertEqual((odd["message"], odd["retry"]), ("ValueError: odd", True))
        self.assertIn("handlers.py", odd["traceback"])
        self.assertFalse(host.run("fails", how="fatal")["retry"])
        self.assertEqual(host.run("fails", how="later")["retry_after"], "1500ms")
        self.assertIn("SystemExit", host.run("fails", how="exit")["message"])
        self.assertEqual(host.run("fails", how="half")["message"], "FileNotFoundError: no file ?")
        cases = [("list", "not a dict"), ("nan", "no JSON"), ("object", "no JSON"), ("deep", "no JSON")]
        for how, reason in cases:
            end = host.run("fails", how=how)
            self.assertIn(reason, end["message"])
            self.assertFalse(end["retry"], how)
        self.assertIn("not in this file", host.run("nothing")["message"])

    def test_hooks_hear_of_each_attempt(self) -> None:
        host = self.host()
        host.give(1, "hooked")
        said = [host.next() for _ in range(3)]
        self.assertEqual([it.get("message") for it in said], ["started", "finished {}", None])
        self.assertEqual(host.run("hooked", fail=True)["message"], "ValueError: no")

    def test_coroutines_and_functions_run_too(self) -> None:
        host = self.host()
        self.assertIn("SystemExit", host.run("leaves")["message"])
        self.assertEqual(host.run("awaited")["result"], {"awaited": True})
        self.assertEqual(host.run("plain", a="\u2028")["result"], {"plain": {"a": "\u2028"}})
        told = {"job": "j", "attempt": 1, "timeout": 1.5}
        self.assertEqual(host.run("told")["result"], told)
        self.assertEqual(host.run("forks")["result"], {"said": "done"})

    def test_what_is_yielded_is_an_item(self) -> None:
        host = self.host()
        host.give(1, "items")
        self.assertEqual([host.next()["item"] for _ in range(2)], [1, {"two": 2}])
        self.assertEqual(host.next(), {"type": "result", "id": 1, "result": {}})
        self.assertEqual(host.run("async-items")["item"], 3)

    def test_a_cancel_reaches_what_runs(self) -> None:
        host = self.host()
        host.give(1, "waits")
        self.assertEqual(host.next(), {"type": "progress", "done": 0.5, "message": "half", "id": 1})
        host.say(type="cancel", id=1)
        self.assertEqual(host.next("log")["message"], "the attempt was cancelled")
        self.assertEqual(host.run("plain")["type"], "result")

    def test_many_run_at_once_where_they_may(self) -> None:
        host = self.host("--concurrency", "3")
        self.assertEqual(self.hello["concurrency"], 3)
        host.give(1, "waits")
        host.give(2, "waits")
        host.next(), host.next()
        host.give(3, "plain")
        self.assertEqual(host.next("log")["id"], 3)
        host.say(type="cancel", id=2)
        self.assertEqual(host.next("log")["id"], 2)

    def test_long_lines_are_read(self) -> None:
        end = self.host().run("plain", text="x" * 5_000_000)
        self.assertEqual(len(end["result"]["plain"]["text"]), 5_000_000)

    def test_it_ends_with_the_node_whatever_runs(self) -> None:
        host = Host()
        host.next("log")
        host.give(1, "waits")
        host.next()
        self.assertEqual(host.close(), 0)
        host = Host()
        host.next("log")
        host.say(type="shutdown")
        self.assertEqual(host.child.wait(20), 0)
        host.close()

    def test_only_some_phases_are_offered(self) -> None:
        self.host("--phase", "plain", "--phase", "told")
        self.assertEqual(self.hello["phases"], [{"name": "plain"}, {"name": "told"}])


class BadFileTest(unittest.TestCase):
    def refused(self, text: str, *arguments: str) -> str:
        host = Host(text, *arguments)
        self.assertNotEqual(host.child.wait(20), 0)
        log = host.logged()
        host.close()
        return log

    def test_what_is_wrong_is_named(self) -> None:
        start = "from carbonmesh import Phase, Pipeline, phase\n"
        named = "class A(Phase):\n    job_type = 'a'\n"
        cases: List[Any] = [
            ("import nowhere", "No module named 'nowhere'"),
            ("x = 1", "has no handlers"),
            (start + "class A(Phase): pass", "class A has no job_type"),
            (start + "class A(Phase):\n    job_type = 7", "job_type must be a text"),
            (start + named + named.replace("class A", "class B"), "both have job_type 'a'"),
            (start + named + "    concurrency = 0", "concurrency must be 1 or more"),
            (start + named + "class P(Pipeline): phases = [A]", "class P has no name"),
            (start + named + "class P(Pipeline): name = 'p'", "has no phases"),
            (start + named + "class P(Pipeline):\n    name = 'p'\n    phases = [7]", "7 is no phase"),
        ]
        for text, reason in cases:
            self.assertIn(reason, self.refused(text), text)
        self.assertIn("the file has a", self.refused(start + named, "--phase", "b"))

    def test_a_base_without_a_name_is_no_phase(self) -> None:
        host = Host(
            "from carbonmesh import Phase\n"
            "class Base(Phase): pass\n"
            "class A(Base):\n    job_type = 'a'\n"
        )
        self.assertEqual(host.next("log")["phases"], [{"name": "a"}])
        host.close()


if __name__ == "__main__":
    unittest.main()
