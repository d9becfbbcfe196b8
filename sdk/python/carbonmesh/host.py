"""The phase host: runs attempts of a file's phases for a node.

One thread reads what the node says, so that a cancel reaches an attempt that runs. Attempts run on the
main thread, or in a pool where several may run at once; coroutines on a loop of their own.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import AsyncGenerator, Coroutine, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Awaitable, Callable, Dict, List, NoReturn, Optional, Tuple, Type

from .phase import Cancelled, Context, Fatal, Phase, Retry
from .wire import Wire

PROTOCOL = 1

#: The longest message, and the longest traceback, that are sent, in characters.
MOST_TEXT = 64 << 10

#: How long attempts may go on once the node says that it is over, and then once they were told to stop,
#: in seconds. The node waits for two.
END_GRACE = 1.0
STOP_GRACE = 0.5

#: What the node was given, and what is known of it here.
_Given = Tuple[Dict[str, Any], Context]


class _ToNode(logging.Handler):
    """Sends log lines as frames; those of an attempt's logger with its id."""

    _LEVELS = ((logging.ERROR, "error"), (logging.WARNING, "warning"), (logging.INFO, "info"))

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = self.format(record)[:MOST_TEXT]
            if self._wire.is_child:
                sys.stderr.write(message + "\n")
                return
            level = next((name for least, name in self._LEVELS if record.levelno >= least), "debug")
            frame: Dict[str, Any] = {"type": "log", "level": level, "message": message}
            attempt = getattr(record, "attempt_id", None)
            if attempt is not None:
                frame["id"] = attempt
            self._wire.send(frame)
        except Exception:  # As all logging handlers: a line that cannot be written stops nothing.
            self.handleError(record)


class Host:
    """Speaks with a node until it ends."""

    def __init__(
        self,
        wire: Wire,
        phases: List[Type[Phase]],
        pipelines: List[Dict[str, Any]],
        concurrency: int,
    ) -> None:
        self._wire = wire
        self._phases = {one.job_type: one for one in phases}
        self._pipelines = pipelines
        self._concurrency = concurrency
        self._inbox: "queue.SimpleQueue[Optional[_Given]]" = queue.SimpleQueue()
        self._running: Dict[int, Context] = {}
        self._loop: Any = None
        self._loop_lock = threading.Lock()

    def run(self) -> NoReturn:
        """Serves until the node says that it is over, or is gone; the process ends then."""
        from . import __version__

        self._wire.send(
            {
                "type": "hello",
                "protocol": PROTOCOL,
                "sdk": f"python {__version__}",
                "phases": [{"name": name} for name in self._phases],
                "concurrency": self._concurrency,
                "pipelines": self._pipelines,
            }
        )
        # Not before: `hello` is the first frame, and threads of the file may log at any time.
        root = logging.getLogger()
        root.addHandler(_ToNode(self._wire))
        if root.level == logging.WARNING:
            root.setLevel(logging.INFO)
        threading.Thread(target=self._read, name="frames", daemon=True).start()
        if self._concurrency == 1:
            self._serve_one_by_one()
        else:
            self._serve_together()
        # Not as the interpreter ends: it waits for threads, and may hang over those that it stops.
        atexit._run_exitfuncs()
        sys.stderr.flush()
        os._exit(0)

    # What the node says.

    def _read(self) -> None:
        told = False
        try:
            for frame in self._wire.frames():
                kind = frame.get("type")
                if kind == "run":
                    context = self._context(frame)
                    # Known from now on: a cancel may come before it begins.
                    self._running[frame["id"]] = context
                    self._inbox.put((frame, context))
                elif kind == "cancel":
                    running = self._running.get(frame["id"])
                    if running is not None:
                        running._cancel()
                elif kind == "welcome":
                    self._wire.max_frame = frame.get("max_frame", self._wire.max_frame)
                elif kind == "shutdown":
                    told = True
                    break
        except Exception:
            traceback.print_exc()
            os._exit(1)
        self._inbox.put(None)
        # With nothing left to do, the main thread ends the process meanwhile.
        if told:
            time.sleep(END_GRACE)
        for running in list(self._running.values()):
            running._cancel()
        time.sleep(STOP_GRACE)
        os._exit(0)

    def _context(self, frame: Dict[str, Any]) -> Context:
        timeout_ms = frame.get("timeout_ms")
        return Context(
            job=frame.get("job", ""),
            pipeline=frame.get("pipeline", ""),
            step=frame.get("step", ""),
            phase=frame["phase"],
            attempt=frame.get("attempt", 1),
            token=frame.get("token", ""),
            idempotency_key=frame.get("idempotency_key", ""),
            gives_items=frame.get("gives_items", False),
            timeout=None if timeout_ms is None else timeout_ms / 1000,
            scope=frame.get("scope", {}),
            traceparent=frame.get("traceparent", ""),
            sessions=frame.get("sessions", {}),
            _id=frame["id"],
            _send=self._wire.send,
        )

    # What is run where.

    def _serve_one_by_one(self) -> None:
        while True:
            given = self._inbox.get()
            if given is None:
                return
            later = self._begin(given)
            if later is not None:
                later.result()

    def _serve_together(self) -> None:
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="phase")
        while True:
            given = self._inbox.get()
            if given is None:
                break
            pool.submit(self._begin, given)
        while self._running:
            time.sleep(0.01)

    def _begin(self, given: _Given) -> Optional["Future[None]"]:
        """Runs an attempt; if that is a coroutine, its end comes later, which is what this returns."""
        try:
            return self._attempt(*given)
        except BaseException:
            _give_up()

    def _attempt(self, frame: Dict[str, Any], context: Context) -> Optional["Future[None]"]:
        instructions = frame["instructions"]
        one: Optional[Phase] = None
        try:
            context.raise_if_cancelled()
            one = self._made(context)
            started = one.on_started(instructions)
            if isinstance(started, Coroutine):
                self._on_loop(started).result()
            value = one.execute(instructions)
            if isinstance(value, (Coroutine, AsyncGenerator)):
                return self._on_loop(self._awaited(one, instructions, context, value))
            if isinstance(value, Generator):
                value = _items(value, context)
            result, line = self._result(value, context)
        except BaseException as error:
            hook = None if one is None else one.on_failed
            said = _told(context, hook, instructions, error)
            line = self._wire.line(_failure(context, error))
        else:
            said = _told(context, one.on_finished, instructions, result)
        if said is not None:
            self._on_loop(_settled(said, context)).result()
        self._end(context, line)
        return None

    async def _awaited(
        self, one: Phase, instructions: Dict[str, Any], context: Context, value: Any
    ) -> None:
        import asyncio

        try:
            try:
                loop, task = asyncio.get_running_loop(), asyncio.current_task()
                assert task is not None
                cancel = task.cancel
                context._stop = lambda: loop.call_soon_threadsafe(cancel)
                context.raise_if_cancelled()
                value = await (
                    _async_items(value, context) if isinstance(value, AsyncGenerator) else value
                )
                result, line = self._result(value, context)
            except BaseException as error:
                said = _told(context, one.on_failed, instructions, error)
                line = self._wire.line(_failure(context, error))
            else:
                said = _told(context, one.on_finished, instructions, result)
            context._stop = None
            if said is not None:
                await _settled(said, context)
            self._end(context, line)
        except BaseException:
            _give_up()

    def _on_loop(self, coroutine: Any) -> "Future[None]":
        import asyncio

        with self._loop_lock:
            if self._loop is None:
                # One loop for all attempts, so that what handlers keep open stays usable.
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_forever, args=(self._loop,), name="loop", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    # How an attempt begins and ends.

    def _made(self, context: Context) -> Phase:
        kind = self._phases.get(context.phase)
        if kind is None:
            raise Fatal(f"phase {context.phase!r} is not in this file")
        one = kind.__new__(kind)
        # First of all, so that `__init__` may log.
        one.context = context
        one.__init__()  # type: ignore[misc]
        return one

    def _result(self, value: Any, context: Context) -> Tuple[Dict[str, Any], bytes]:
        """What an attempt gave, and the frame that says so."""
        if value is None:
            value = {}
        if not isinstance(value, dict):
            kind = type(value).__name__
            raise Fatal(f"execute returned {kind}, not a dict: return {{'key': value}}")
        try:
            return value, self._wire.line({"type": "result", "id": context._id, "result": value})
        except ValueError as error:
            raise Fatal(f"its result {error}") from error

    def _end(self, context: Context, line: bytes) -> None:
        self._running.pop(context._id, None)
        self._wire.write(line)


def _items(values: Any, context: Context) -> Any:
    """Gives what a generator yields; what it returns is its result."""
    try:
        while True:
            context.item(next(values))
    except StopIteration as end:
        return end.value
    finally:
        values.close()


async def _async_items(values: Any, context: Context) -> None:
    try:
        async for item in values:
            context.item(item)
    finally:
        await values.aclose()


def _told(context: Context, hook: Optional[Callable[..., Any]], *arguments: Any) -> Any:
    """Tells a hook how the attempt ended, which its own failure does not change.

    If it is a coroutine, that comes back, to be awaited.
    """
    if hook is None:
        return None
    try:
        said = hook(*arguments)
    except BaseException:
        context.logger.exception("a hook failed")
        return None
    return said if isinstance(said, Coroutine) else None


async def _settled(hook: Awaitable[Any], context: Context) -> None:
    try:
        await hook
    except BaseException:
        context.logger.exception("a hook failed")


def _give_up() -> NoReturn:
    """A defect here: an attempt that does not end would be waited for."""
    traceback.print_exc()
    os._exit(1)


def _forever(loop: Any) -> None:
    while True:
        try:
            loop.run_forever()
        except BaseException:  # Such as sys.exit() in a task that a handler began.
            traceback.print_exc()


def _failure(context: Context, error: BaseException) -> Dict[str, Any]:
    """The frame that says how an attempt failed."""
    try:
        message = str(error)
    except BaseException:
        message = "it cannot say why"
    frame: Dict[str, Any] = {"type": "error", "id": context._id, "retry": not isinstance(error, Fatal)}
    if context.cancelled and type(error).__name__ in ("Cancelled", "CancelledError"):
        frame["message"] = "the attempt was cancelled"
        return frame
    if isinstance(error, Retry) and error.after is not None:
        frame["retry_after"] = error.after
    if isinstance(error, (Fatal, Retry, Cancelled)):
        frame["message"] = message[:MOST_TEXT]
        if error.__cause__ is None:
            return frame
    else:
        name = type(error).__name__
        frame["message"] = f"{name}: {message}"[:MOST_TEXT] if message else name
    try:
        # The first line of it is here, and tells nobody anything.
        at = error.__traceback__ and (error.__traceback__.tb_next or error.__traceback__)
        lines = "".join(traceback.format_exception(type(error), error, at))
        frame["traceback"] = lines[-MOST_TEXT:]
    except BaseException:
        frame["traceback"] = ""
    return frame
