"""What a worker does: phases, as classes or as functions, and what an attempt knows of itself.

This knows nothing of frames: the host gives each attempt a context, through which it speaks.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, Callable, ClassVar, Dict, List, Optional, Type, Union


class Retry(Exception):
    """The attempt has failed, and another may do better.

    ``after`` is how long to wait until then, in seconds or as ``"30s"``; it takes the place of the
    pipeline's backoff.
    """

    def __init__(self, message: str, after: Union[None, float, str] = None) -> None:
        super().__init__(message)
        self.after = after if after is None or isinstance(after, str) else f"{int(after * 1000)}ms"


class Fatal(Exception):
    """The attempt has failed, and no other will do better: the job becomes a dead letter."""


class Cancelled(Exception):
    """Nobody wants the attempt's end any more."""


@dataclass
class Context:
    """What one attempt knows of itself, and how it is heard."""

    job: str
    pipeline: str
    step: str
    phase: str
    #: Which attempt of this step of this job it is, from 1.
    attempt: int
    #: Fences: later attempts have greater ones.
    token: str
    #: The same for all attempts of this step of this job.
    idempotency_key: str
    #: Whether something is done with each item that it gives.
    gives_items: bool
    #: How long it may take, in seconds.
    timeout: Optional[float]
    logger: logging.LoggerAdapter
    _send: Callable[[Dict[str, Any]], None] = field(repr=False)
    _is_cancelled: bool = False

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants its end any more; it should end soon then."""
        return self._is_cancelled

    def raise_if_cancelled(self) -> None:
        """Raises ``Cancelled`` if nobody wants its end any more."""
        if self._is_cancelled:
            raise Cancelled("the attempt was cancelled")

    def heartbeat(self) -> None:
        """Shows that it lives, for phases with a ``heartbeat_timeout``."""
        self._send({"type": "heartbeat"})

    def progress(self, done: float, message: Optional[str] = None) -> None:
        """Says how far it has come: a part of 1, and what is being done."""
        frame: Dict[str, Any] = {"type": "progress", "done": float(done)}
        if message is not None:
            frame["message"] = str(message)
        self._send(frame)

    def item(self, value: Any) -> None:
        """Gives one item, where a phase behind does something ``for_each``."""
        if not self.gives_items:
            raise Fatal(f"step {self.step!r} gives an item, and no phase has for_each = {self.step!r}")
        self._send({"type": "item", "item": value})


class Phase:
    """One step of pipelines: give it a ``job_type`` and ``execute``.

    There is one object for each attempt, so what ``execute`` keeps on ``self`` is its own.
    """

    #: What pipelines call it.
    job_type: ClassVar[Optional[str]] = None

    #: How many attempts one process runs at the same time, in threads, or as coroutines if
    #: ``execute`` is one. The file's host takes the least of all its phases.
    concurrency: ClassVar[int] = 1

    context: Context

    def execute(self, instructions: Dict[str, Any]) -> Any:
        """Does the work; what it returns is merged into the next phase's instructions.

        It may be ``async``, and may be a generator: what it yields are items then.
        """
        raise NotImplementedError(f"{type(self).__name__} has no execute(self, instructions)")

    def on_started(self, instructions: Dict[str, Any]) -> None:
        """An attempt begins."""

    def on_finished(self, instructions: Dict[str, Any], result: Dict[str, Any]) -> None:
        """An attempt has ended well, with this."""

    def on_failed(self, instructions: Dict[str, Any], error: BaseException) -> None:
        """An attempt has failed."""

    @property
    def logger(self) -> logging.LoggerAdapter:
        """A logger whose lines go into the log of the node that runs it."""
        return self.context.logger

    @property
    def cancelled(self) -> bool:
        """See ``Context.cancelled``."""
        return self.context.cancelled

    def raise_if_cancelled(self) -> None:
        """See ``Context.raise_if_cancelled``."""
        self.context.raise_if_cancelled()

    def heartbeat(self) -> None:
        """See ``Context.heartbeat``."""
        self.context.heartbeat()

    def progress(self, done: float, message: Optional[str] = None) -> None:
        """See ``Context.progress``."""
        self.context.progress(done, message)

    def item(self, value: Any) -> None:
        """See ``Context.item``."""
        self.context.item(value)


def phase(job_type: str, concurrency: int = 1) -> Callable[[Callable[..., Any]], Type[Phase]]:
    """Makes a phase of a function of instructions, or of instructions and a ``Context``."""

    def make(function: Callable[..., Any]) -> Type[Phase]:
        takes_context = function.__code__.co_argcount > 1

        def execute(self: Phase, instructions: Dict[str, Any]) -> Any:
            return function(instructions, self.context) if takes_context else function(instructions)

        attributes = {
            "job_type": job_type,
            "concurrency": concurrency,
            "execute": execute,
            "__doc__": function.__doc__,
            "__module__": function.__module__,
        }
        return type(function.__name__, (Phase,), attributes)

    return make


def phases_in(namespace: Dict[str, Any]) -> List[Type[Phase]]:
    """The phases that a file defines or imports.

    Raises ``TypeError`` for a class that cannot be one.
    """
    found = [
        value
        for value in namespace.values()
        if isinstance(value, type) and issubclass(value, Phase) and value is not Phase
    ]
    named: Dict[str, Type[Phase]] = {}
    for one in dict.fromkeys(found):
        if one.job_type is None:
            # A base of others needs no name of its own.
            if any(other is not one and issubclass(other, one) for other in found):
                continue
            raise TypeError(
                f"class {one.__name__} has no job_type: add, for example, job_type = 'resize-image'"
            )
        if not isinstance(one.job_type, str):
            raise TypeError(f"class {one.__name__}: job_type must be a text, not {one.job_type!r}")
        if not isinstance(one.concurrency, int) or one.concurrency < 1:
            raise TypeError(
                f"class {one.__name__}: concurrency must be 1 or more, not {one.concurrency!r}"
            )
        other = named.setdefault(one.job_type, one)
        if other is not one:
            raise TypeError(
                f"classes {other.__name__} and {one.__name__} both have job_type {one.job_type!r}"
            )
    return list(named.values())
