"""The phase host as a node sees it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest
from pathlib import Path
from typing import Any, Dict, List

from carbonmesh import Context, Phase, Pipeline, Retry, phase

SDK = Path(__file__).resolve().parent.parent

HANDLERS = """
import asyncio, atexit, dataclasses, logging, os, pickle, subprocess, sys, threading, time
from carbonmesh import Fatal, Phase, Pipeline, Retry, phase

print('no frame, while the file is loaded')
os.system('echo no frame either')
print('where', sys.argv, __name__)
atexit.register(lambda: print('ended in order', file=sys.stderr))

class Double(Phase):
    job_type = 'double'
    def execute(self, instructions):
        print('not a frame')
        os.system('echo not a frame either')
        self.logger.warning('doubling %d', instructions['number'])
        return {'number': instructions['number'] * 2}

class Mute(Exception):
    def __str__(self): raise KeyError('no text')

class Wild(dict):
    def items(self): raise KeyError('no items')

@dataclasses.dataclass
class Point:
    x: 'int'

class Fails(Phase):
    job_type = 'fails'
    def execute(self, instructions):
        how = instructions['how']
        if how == 'fatal': raise Fatal('never')
        if how == 'later': raise Retry('busy', after='1m 1.5s')
        if how == 'whenever': raise Retry('busy', after='soon')
        if how == 'mute': raise Mute()
        if how == 'half': raise FileNotFoundError('no file \\udce9')
        if how == 'deep':
            deep = []
            for _ in range(100000): deep = [deep]
            return {'x': deep}
        if how == 'wild': return Wild(a=1)
        if how == 'endless':
            endless = {}
            endless['x'] = endless
            return endless
        if how == 'exit': sys.exit(3)
        if how == 'list': return [1]
        if how == 'nan': return {'x': float('nan')}
        if how == 'object': return {'x': object()}
        raise ValueError('odd')

class Hooked(Phase):
    job_type = 'hooked'
    def execute(self, instructions):
        if instructions.get('fail'): raise ValueError('no')
    def on_started(self, instructions): self.logger.info('started')
    def on_finished(self, instructions, result): self.logger.info('finished %s', result)
    def on_failed(self, instructions, error): self.logger.info('failed %s', error); raise KeyError('hook')

class AsyncHooked(Phase):
    job_type = 'async-hooked'
    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.logger.info('made')
    async def on_started(self, instructions): self.logger.info('started')
    async def on_finished(self, instructions, result): self.logger.info('finished'); sys.exit()
    async def execute(self, instructions): return {}

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

class AsyncWaits(Phase):
    job_type = 'async-waits'
    async def execute(self, instructions):
        try:
            self.progress(2)
            await asyncio.Event().wait()
        finally:
            self.logger.info('cleaned up')

class Pours(Phase):
    job_type = 'pours'
    def execute(self, instructions):
        while True: yield {'text': 'x' * 1000}

class Loads(Phase):
    job_type = 'loads'
    def execute(self, instructions):
        return {'text': 'x' * instructions['bytes']}

class Spawns(Phase):
    job_type = 'spawns'
    def execute(self, instructions):
        child = os.fork()
        if child == 0:
            self.logger.warning('from a child')
            self.progress(0.5)
            os._exit(0)
        os.waitpid(child, 0)
        thread = threading.Thread(target=self.logger.info, args=('from a thread',))
        thread.start()
        thread.join()
        sys.stdin.close()
        os.close(0)
        point = pickle.loads(pickle.dumps(Point(3)))
        return {'x': point.x, 'task': asyncio.new_event_loop().run_until_complete(exits())}

async def exits(): return 1

class Exits(Phase):
    job_type = 'exits'
    async def execute(self, instructions):
        task = asyncio.ensure_future(self.leave())
        await asyncio.wait([task])
        return {}
    async def leave(self): sys.exit(1)

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

class Maps(Phase):
    job_type = 'maps'
    def execute(self, instructions):
        self.session['n'] = {'k': 1}
        self.session['gone'] = None
        del self.session['gone']
        own = self.session['n']
        return {'own': own, 'all': dict(self.session), 'first': self.context.sessions['first']}

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

    def give(self, id: int, phase: str, gives_items: bool = True, **instructions: Any) -> None:
        self.say(
            type="run", id=id, phase=phase, instructions=instructions, job="j", pipeline="p",
            step="s", attempt=1, token="t", idempotency_key="j/s", gives_items=gives_items,
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
        try:
            self.child.stdin.close()
        except BrokenPipeError:
            pass
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
        self.assertEqual(host.run("fails", how="later")["retry_after"], "61500ms")
        self.assertIn("'soon' is no duration", host.run("fails", how="whenever")["message"])
        self.assertEqual(host.run("fails", how="mute")["message"], "Mute: it cannot say why")
        self.assertEqual(host.run("fails", how="half")["message"], "FileNotFoundError: no file ?")
        self.assertIn("SystemExit", host.run("fails", how="exit")["message"])
        for how, reason in [("list", "not a dict"), ("nan", "no JSON"), ("object", "no JSON"),
                            ("deep", "no JSON"), ("wild", "no JSON"), ("endless", "no JSON")]:
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
        host.give(2, "async-hooked")
        said = [host.next() for _ in range(5)]
        self.assertEqual([it.get("message") for it in said[:3]], ["made", "started", "finished"])
        self.assertIn("a hook failed", said[3]["message"])
        self.assertEqual(said[4], {"type": "result", "id": 2, "result": {}})

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
        # One that waits for its turn: the node does not give it, and takes it back all the same.
        host.give(1, "waits")
        host.next()
        host.give(2, "waits")
        host.say(type="cancel", id=2)
        host.say(type="cancel", id=1)
        self.assertEqual([host.next("log")["id"], host.next("log")["id"]], [1, 2])

    def test_a_session_is_left_and_those_before_are_read(self) -> None:
        host = self.host()
        left = {"first": {"n": 0, "old": "a"}, "second": {"old": "b"}}
        host.say(
            type="run", id=1, phase="maps", instructions={}, job="j", pipeline="p", step="s",
            attempt=1, token="t", idempotency_key="j/s", gives_items=True, sessions=left,
        )
        frames = [host.next() for _ in range(4)]
        said = [{"type": "session", "id": 1, "key": "n", "value": {"k": 1}}]
        said.append({"type": "session", "id": 1, "key": "gone", "value": None})
        said.append({"type": "session", "id": 1, "key": "gone"})
        self.assertEqual(frames[:3], said)
        result = {"own": {"k": 1}, "all": {"n": {"k": 1}, "old": "b"}, "first": left["first"]}
        self.assertEqual(frames[3], {"type": "result", "id": 1, "result": result})
        host.give(2, "maps", gives_items=False)
        failed = host.next()
        self.assertEqual((failed["type"], failed["retry"]), ("error", False))
        self.assertIn("for_each", failed["message"])

    def test_a_cancel_ends_coroutines_and_what_gives_items(self) -> None:
        for arguments in [(), ("--concurrency", "4")]:
            host = self.host(*arguments)
            host.give(1, "async-waits")
            self.assertEqual(host.next()["done"], 1)
            host.say(type="cancel", id=1)
            self.assertEqual(host.next()["message"], "cleaned up")
            self.assertEqual(host.next()["message"], "the attempt was cancelled")
            host.give(2, "pours")
            host.next()
            host.say(type="cancel", id=2)
            self.assertEqual(host.next("item")["message"], "the attempt was cancelled")
            self.assertEqual(host.run("plain")["type"], "result")

    def test_a_cancel_that_comes_with_its_attempt_is_not_lost(self) -> None:
        host = self.host()
        for id in range(1, 50):
            host.give(id, ("waits", "async-waits")[id % 2])
            host.say(type="cancel", id=id)
            end = host.next("log", "progress")
            self.assertEqual((end["id"], end["message"]), (id, "the attempt was cancelled"))

    def test_children_threads_and_tasks_of_handlers_do_no_harm(self) -> None:
        for arguments in [(), ("--concurrency", "4")]:
            host = self.host(*arguments)
            host.give(1, "spawns")
            self.assertEqual(host.next()["message"], "from a thread")
            self.assertEqual(host.next()["result"], {"x": 3, "task": 1})
            self.assertIn("from a child", host.logged())
            self.assertEqual(host.run("exits")["result"], {})
            self.assertEqual(host.run("awaited")["result"], {"awaited": True})

    def test_frames_are_no_longer_than_the_node_takes(self) -> None:
        host = self.host()
        host.say(type="welcome", protocol=1, max_frame=100_000)
        self.assertEqual(host.run("loads", bytes=99_000)["type"], "result")
        end = host.run("loads", bytes=100_000)
        self.assertIn("too long", end["message"])
        self.assertFalse(end["retry"])

    def test_items_are_refused_where_nobody_takes_them(self) -> None:
        host = self.host()
        host.give(1, "items", gives_items=False)
        end = host.next()
        self.assertIn("for_each = 's'", end["message"])
        self.assertFalse(end["retry"])

    def test_a_node_that_speaks_otherwise_is_left(self) -> None:
        for line in [b"no frame\n", b"[]\n", b'{"type": "run", "id": 1}\n']:
            host = Host()
            host.next("log")
            assert host.child.stdin is not None
            host.child.stdin.write(line)
            host.child.stdin.flush()
            self.assertEqual(host.child.wait(20), 1)
            self.assertIn("Traceback", host.logged())
            host.close()

    def test_a_node_that_is_lost_within_a_frame_is_gone(self) -> None:
        host = Host()
        host.next("log")
        assert host.child.stdin is not None
        host.child.stdin.write(b'{"type": "run", "id"')
        self.assertEqual(host.close(), 0)

    def test_a_node_that_reads_no_more_is_gone(self) -> None:
        host = Host()
        host.next("log")
        assert host.child.stdout is not None
        host.child.stdout.close()
        host.give(1, "pours")
        self.assertEqual(host.child.wait(20), 0)
        host.close()

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
        self.assertIn("ended in order", host.logged())
        host.close()
        host = Host(HANDLERS, "--concurrency", "4")
        host.next("log")
        host.give(1, "waits")
        host.give(2, "async-waits")
        host.next(), host.next()
        told = time.monotonic()
        host.say(type="shutdown")
        ends = [host.next("log")["message"] for _ in range(2)]
        self.assertEqual(ends, ["the attempt was cancelled"] * 2)
        self.assertEqual(host.child.wait(20), 0)
        self.assertLess(time.monotonic() - told, 2)
        host.close()

    def test_only_some_phases_are_offered(self) -> None:
        self.host("--phase", "plain", "--phase", "told")
        self.assertEqual(self.hello["phases"], [{"name": "plain"}, {"name": "told"}])


class AloneTest(unittest.TestCase):
    def test_phases_may_be_tried_without_a_host(self) -> None:
        @phase("double")
        def double(instructions: Dict[str, Any], context: Context) -> Dict[str, Any]:
            context.progress(0.5)
            return {"number": instructions["number"] * 2}

        class Half(Phase):
            job_type = "half"

            def __init__(self) -> None:
                self.logger = logging.getLogger("mine")

            def execute(self, instructions: Dict[str, Any]) -> Any:
                self.logger.info("half of %d", instructions["number"])
                self.heartbeat()
                self.item(1)
                self.raise_if_cancelled()
                return {"number": instructions["number"] / 2, "job": self.context.job}

        class Both(Pipeline):
            name = "both"
            phases = [double, {"name": "again", "phase": Half, "compensate": double}]

        self.assertEqual(double({"number": 2}, Context()), {"number": 4})
        self.assertEqual(Half().execute({"number": 2}), {"number": 1, "job": ""})
        again = {"name": "again", "phase": "half", "compensate": "double"}
        self.assertEqual(Both.document(), {"name": "both", "phases": ["double", again]})

    def test_durations_are_seconds_or_texts(self) -> None:
        durations: List[Any] = [(0, "0ms"), (1.5, "1500ms"), ("500ms", "500ms"), ("1h 30m", "5400000ms"),
                                ("7d", "604800000ms"), ("1.5s", "1500ms")]
        for given, ms in durations:
            self.assertEqual(Retry("", after=given).after, ms)
        texts: List[Any] = ["", "30", "-5s", "soon", "1h later", "9" * 400 + "d"]
        wrongs = [*texts, -1, float("nan"), float("inf")]
        for wrong in wrongs:
            with self.assertRaises(ValueError):
                Retry("", after=wrong)


class FileTest(unittest.TestCase):
    def test_a_file_may_have_pipelines_alone(self) -> None:
        host = Host("from carbonmesh import Pipeline\nclass P(Pipeline):\n    name, phases = 'p', ['a']\n")
        hello = host.next("log")
        self.assertEqual((hello["phases"], hello["concurrency"]), ([], 1))
        self.assertEqual(hello["pipelines"], [{"name": "p", "phases": ["a"]}])
        host.close()


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
        pipeline = "class P(Pipeline):\n    name = 'p'\n    phases = [A]\n"
        cases: List[Any] = [
            ("import nowhere", "No module named 'nowhere'"),
            ("x = 1", "has no handlers"),
            (start + "class A(Phase): pass", "class A has no job_type"),
            (start + "class A(Phase):\n    job_type = 7", "job_type must be a text"),
            (start + "class A(Phase):\n    job_type = 'a b'", "class A: job_type may not be 'a b'"),
            (start + "@phase\ndef a(instructions): pass", "write @phase('resize-image')"),
            (start + "@phase('a')\ndef a(): pass", "a must take instructions"),
            (start + named + "import sys; sys.exit(0)", "SystemExit"),
            (start + named + pipeline + "    options = {'x': {1}}", "is no JSON"),
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
