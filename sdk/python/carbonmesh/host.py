"""The phase host: runs attempts of a file's phases for a node.

One thread reads what the node says, so that a cancel reaches an attempt that runs; attempts run on the
main thread, or in a pool where several may run at once.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import queue
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, List, Optional, Tuple, Type

from .phase import Cancelled, Context, Fatal, Phase, Retry
from .wire import Wire

PROTOCOL = 1


class _ToNode(logging.Handler):
    """Sends log lines as frames; those of an attempt's logger with its id."""

    _LEVELS = ((logging.ERROR, "error"), (logging.WARNING, "warning"), (logging.INFO, "info"))

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = next((name for least, name in self._LEVELS if record.levelno >= least), "debug")
            frame: Dict[str, Any] = {"type": "log", "level": level, "message": self.format(record)}
            attempt = getattr(record, "attempt_id", None)
            if attempt is not None:
                frame["id"] = attempt
            self._wire.send(frame)
        except Exception:  # As all logging handlers: a line that cannot be written stops nothing.
            self.handleError(record)


class _AttemptLogger(logging.LoggerAdapter):
    def process(self, msg: Any, kwargs: Any) -> Any:
        kwargs["extra"] = {**(kwargs.get("extra") or {}), "attempt_id": self.extra["attempt_id"]}
        return msg, kwargs


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
        self._inbox: "queue.SimpleQueue[Tuple[Dict[str, Any], Context]]" = queue.SimpleQueue()
        self._running: Dict[int, Context] = {}
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._loop_lock = threading.Lock()
        root = logging.getLogger()
        root.addHandler(_ToNode(self._wire))
        if root.level == logging.WARNING:
            root.setLevel(logging.INFO)

    def run(self) -> None:
        """Serves until the node says that it is over, or is gone."""
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
        threading.Thread(target=self._read, name="frames", daemon=True).start()
        if self._concurrency == 1:
            self._serve_one_by_one()
        else:
            self._serve_together()

    def _read(self) -> None:
        try:
            for frame in self._wire.frames():
                kind = frame.get("type")
                if kind == "run":
                    # Known before it begins: a cancel may follow at once.
                    context = self._running[frame["id"]] = self._context(frame)
                    self._inbox.put((frame, context))
                elif kind == "cancel":
                    context = self._running.get(frame.get("id", -1))
                    if context is not None:
                        context._is_cancelled = True
                elif kind == "shutdown":
                    break
        except Exception:
            traceback.print_exc()
            os._exit(1)
        # What runs is not wanted any more, and may not end by itself.
        self._wire.flush()
        os._exit(0)

    def _serve_one_by_one(self) -> None:
        while True:
            # Ends that follow each other closely leave together.
            self._attempt(*self._inbox.get(), more=lambda: not self._inbox.empty())

    def _serve_together(self) -> None:
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="phase") as pool:
            while True:
                pool.submit(self._attempt, *self._inbox.get(), more=lambda: False)

    def _attempt(self, frame: Dict[str, Any], context: Context, more: Any) -> None:
        attempt = frame["id"]
        try:
            end = self._run(frame, context)
            try:
                self._wire.send(end, more=more())
                return
            except Exception as error:  # No JSON, nested too deep, or made of strange objects.
                message = f"its result is no JSON: {error}"
            end = {"type": "error", "id": attempt, "message": message, "retry": False}
            self._wire.send(end, more=more())
        except BaseException:
            # An attempt without an end would hold its slot for ever; one whose process ends does not.
            traceback.print_exc()
            os._exit(1)
        finally:
            self._running.pop(attempt, None)

    def _run(self, frame: Dict[str, Any], context: Context) -> Dict[str, Any]:
        attempt, instructions = frame["id"], frame["instructions"]
        kind = self._phases.get(frame["phase"])
        if kind is None:
            return _error(attempt, f"phase {frame['phase']!r} is not in this file", retry=False)
        try:
            one = kind()
            one.context = context
            one.on_started(instructions)
        except BaseException as error:
            return _failed(attempt, error)
        try:
            result = self._executed(one, instructions, context)
            if result is None:
                result = {}
            if not isinstance(result, dict):
                kind_name = type(result).__name__
                raise Fatal(f"execute returned {kind_name}, not a dict: return {{'key': value}}")
        except BaseException as error:
            _hooked(one.on_failed, instructions, error)
            return _failed(attempt, error)
        _hooked(one.on_finished, instructions, result)
        return {"type": "result", "id": attempt, "result": result}

    def _executed(self, one: Phase, instructions: Dict[str, Any], context: Context) -> Any:
        given = one.execute(instructions)
        if inspect.iscoroutine(given):
            return self._awaited(given)
        if inspect.isgenerator(given):
            for item in given:
                context.item(item)
            return None
        if inspect.isasyncgen(given):

            async def give() -> None:
                async for item in given:
                    context.item(item)

            return self._awaited(give())
        return given

    def _awaited(self, coroutine: Any) -> Any:
        with self._loop_lock:
            if self._loop is None:
                # One loop for all attempts, so that what handlers keep open stays usable.
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="loop", daemon=True).start()

        async def guarded() -> Any:
            # The loop is for all attempts: sys.exit() in one must not end it.
            try:
                return await coroutine, None
            except BaseException as error:
                return None, error

        result, error = asyncio.run_coroutine_threadsafe(guarded(), self._loop).result()
        if error is not None:
            raise error
        return result

    def _context(self, frame: Dict[str, Any]) -> Context:
        attempt = frame["id"]
        timeout_ms = frame.get("timeout_ms")

        def send(part: Dict[str, Any]) -> None:
            part["id"] = attempt
            self._wire.send(part)

        return Context(
            job=frame["job"],
            pipeline=frame["pipeline"],
            step=frame["step"],
            phase=frame["phase"],
            attempt=frame["attempt"],
            token=frame["token"],
            idempotency_key=frame["idempotency_key"],
            gives_items=frame["gives_items"],
            timeout=None if timeout_ms is None else timeout_ms / 1000,
            logger=_AttemptLogger(logging.getLogger(frame["phase"]), {"attempt_id": attempt}),
            _send=send,
        )


def _hooked(hook: Any, *arguments: Any) -> None:
    """A hook's own failure changes nothing about how the attempt ended."""
    try:
        hook(*arguments)
    except Exception:
        logging.getLogger("carbonmesh").exception("%s failed", getattr(hook, "__name__", hook))


def _failed(attempt: int, error: BaseException) -> Dict[str, Any]:
    if isinstance(error, Fatal):
        return _error(attempt, str(error), retry=False)
    if isinstance(error, Retry):
        return _error(attempt, str(error), retry=True, after=error.after)
    if isinstance(error, Cancelled):
        return _error(attempt, str(error), retry=True)
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    message = "".join(traceback.format_exception_only(type(error), error)).strip()
    return {**_error(attempt, message, retry=True), "traceback": "".join(lines)}


def _error(attempt: int, message: str, retry: bool, after: Optional[str] = None) -> Dict[str, Any]:
    frame: Dict[str, Any] = {"type": "error", "id": attempt, "message": message, "retry": retry}
    if after is not None:
        frame["retry_after"] = after
    return frame
