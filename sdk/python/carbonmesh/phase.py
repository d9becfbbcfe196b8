"""What a worker does: phases, as classes or as functions, and what an attempt knows of itself.

This knows nothing of how frames are written: the host gives each attempt a context, through which it
speaks. Without a host, as in a test, nobody hears it.
"""

from __future__ import annotations

import inspect
import logging
import re
from dataclasses import dataclass, field
from typing import (
    Any,
    Callable,
    ClassVar,
    Dict,
    Iterator,
    List,
    MutableMapping,
    Optional,
    Type,
    TypeVar,
    Union,
)

_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?\s*(?:ms|s|m|h|d)\s*)+", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", re.ASCII)

#: The longest duration, in milliseconds: a thousand years.
_LONGEST_MS = 1000 * 366 * 86_400_000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

_Function = TypeVar("_Function", bound=Callable[..., Any])


def duration(value: Union[float, str]) -> str:
    """Seconds, or a text such as ``"30s"`` or ``"1h 30m"``, as nodes read it.

    Raises ``ValueError`` if it is neither.
    """
    if isinstance(value, str):
        parts = _PART.findall(value) if _DURATION.fullmatch(value.strip()) else []
        ms = sum(float(number) * _UNITS_MS[unit] for number, unit in parts) if parts else -1.0
    else:
        ms = float(value) * 1000
    if not 0 <= ms <= _LONGEST_MS:
        raise ValueError(f"{value!r} is no duration: give seconds, or a text such as '30s' or '1h 30m'")
    return f"{round(ms)}ms"


def checked_name(name: str) -> str:
    """The name, if a phase or a pipeline may have it. Raises ``TypeError`` if not."""
    if not isinstance(name, str):
        raise TypeError(f"must be a text, not {name!r}")
    if not _NAME.fullmatch(name):
        raise TypeError(
            f"may not be {name!r}: 1 to 63 of a-z A-Z 0-9 - _ . are allowed, and the first must be a "
            "letter or a digit"
        )
    return name


class Retry(Exception):
    """The attempt has failed, and another may do better.

    ``after`` is how long to wait until then, in seconds or as ``"30s"``; it takes the place of the
    pipeline's backoff.
    """

    def __init__(self, message: str = "", after: Union[None, float, str] = None) -> None:
        super().__init__(message)
        self.after = None if after is None else duration(after)


class Fatal(Exception):
    """The attempt has failed, and no other will do better: the job becomes a dead letter."""


class Cancelled(Exception):
    """Nobody wants the attempt's end any more."""


class _AttemptLogger(logging.LoggerAdapter):  # type: ignore[type-arg]
    def process(self, msg: Any, kwargs: Any) -> Any:
        kwargs["extra"] = {**(kwargs.get("extra") or {}), **(self.extra or {})}
        return msg, kwargs


class Session(MutableMapping[str, Any]):
    """What a phase that gives items leaves beside them, for the phase behind what is made of these.

    The first writes it, the second reads it. What is set is durable when the attempt's end is; what an
    attempt left that failed is gone. A phase that is both reads its own keys before those of others; of
    several before it, those of the later in the pipeline count. ``Context.sessions`` has each by its step.
    """

    def __init__(self, context: "Context") -> None:
        self._context = context
        self._own: Dict[str, Any] = {}

    def _all(self) -> Dict[str, Any]:
        merged: Dict[str, Any] = {}
        for left in self._context.sessions.values():
            merged.update(left)
        merged.update(self._own)
        return merged

    def __getitem__(self, key: str) -> Any:
        if key in self._own:
            return self._own[key]
        for left in reversed(list(self._context.sessions.values())):
            if key in left:
                return left[key]
        raise KeyError(key)

    def __setitem__(self, key: str, value: Any) -> None:
        self._context._leave(key, {"value": value})
        self._own[key] = value

    def __delitem__(self, key: str) -> None:
        if key not in self._own:
            raise KeyError(key)
        self._context._leave(key, {})
        del self._own[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        return f"Session({self._all()!r})"


def _unheard(_frame: Dict[str, Any]) -> None:
    pass


@dataclass
class Context:
    """What one attempt knows of itself, and how it is heard."""

    job: str = ""
    pipeline: str = ""
    step: str = ""
    phase: str = "carbonmesh"
    #: Which attempt of this step of this job it is, from 1.
    attempt: int = 1
    #: Fences: later attempts have greater ones.
    token: str = ""
    #: The same for all attempts of this step of this job.
    idempotency_key: str = ""
    #: Whether something is done with each item that it gives.
    gives_items: bool = True
    #: How long it may take, in seconds.
    timeout: Optional[float] = None
    #: Values and secrets that the node's operator gives to this phase.
    scope: Dict[str, str] = field(default_factory=dict, repr=False)
    #: The attempt's span (W3C Trace Context): what the phase traces belongs below it.
    traceparent: str = ""
    #: What phases left that gave the items before it, by step.
    sessions: Dict[str, Dict[str, Any]] = field(default_factory=dict, repr=False)
    #: What the node calls it.
    _id: Any = field(default=None, repr=False)
    _send: Callable[[Dict[str, Any]], None] = field(default=_unheard, repr=False)
    #: What ends it from outside, if anything can.
    _stop: Optional[Callable[[], Any]] = field(default=None, repr=False)
    _is_cancelled: bool = field(default=False, repr=False)
    _logger: Optional[logging.LoggerAdapter[logging.Logger]] = field(default=None, repr=False)
    _session: Optional[Session] = field(default=None, repr=False)

    @property
    def session(self) -> Session:
        """What a phase that gives items leaves for the phase behind what is made of these."""
        if self._session is None:
            self._session = Session(self)
        return self._session

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose lines go into the log of the node that runs it."""
        if self._logger is None:
            self._logger = _AttemptLogger(logging.getLogger(self.phase), {"attempt_id": self._id})
        return self._logger

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
        self._send({"type": "heartbeat", "id": self._id})

    def progress(self, done: float, message: Optional[str] = None) -> None:
        """Says how far it has come: a part of 1, and what is being done."""
        # Sums of parts may be a little more than 1.
        within = max(0.0, min(1.0, float(done)))
        frame: Dict[str, Any] = {"type": "progress", "id": self._id, "done": within}
        if message is not None:
            frame["message"] = str(message)
        self._send(frame)

    def item(self, value: Any) -> None:
        """Gives one item, where a phase behind does something ``for_each``."""
        # A generator that does not look would otherwise go on for nobody.
        self.raise_if_cancelled()
        if not self.gives_items:
            raise Fatal(
                f"step {self.step!r} gives an item, and no phase of the pipeline has "
                f"for_each = {self.step!r}"
            )
        try:
            self._send({"type": "item", "id": self._id, "item": value})
        except ValueError as error:
            raise Fatal(f"an item {error}") from error

    def _leave(self, key: str, value: Dict[str, Any]) -> None:
        self.raise_if_cancelled()
        if not isinstance(key, str):
            raise TypeError(f"a session's keys are texts, not {key!r}")
        if not self.gives_items:
            raise Fatal(
                f"step {self.step!r} sets {key!r} in its session, and no phase of the pipeline has "
                f"for_each = {self.step!r}, behind which one could read it"
            )
        try:
            self._send({"type": "session", "id": self._id, "key": key, **value})
        except ValueError as error:
            raise Fatal(f"session key {key!r} {error}") from error

    def _cancel(self) -> None:
        # In this order: whoever sets `_stop` looks at the other afterwards.
        self._is_cancelled = True
        stop = self._stop
        if stop is not None:
            stop()


class Phase:
    """One step of pipelines: give it a ``job_type`` and ``execute``.

    There is one object for each attempt, so what ``execute`` keeps on ``self`` is its own.
    """

    #: What pipelines call it.
    job_type: ClassVar[Optional[str]] = None

    #: How many attempts one process runs at the same time, in threads, or as coroutines if
    #: ``execute`` is one. The file's host takes the least of all its phases.
    concurrency: ClassVar[int] = 1

    #: What the attempt knows of itself.
    context: Context = Context()

    _logger: Any = None

    def execute(self, instructions: Dict[str, Any]) -> Any:
        """Does the work; what it returns is merged into the next phase's instructions.

        It may be ``async``, and may be a generator: what it yields are items then.
        """
        raise NotImplementedError(f"{type(self).__name__} has no execute(self, instructions)")

    def on_started(self, instructions: Dict[str, Any]) -> Any:
        """An attempt begins. Hooks may be ``async``, too."""

    def on_finished(self, instructions: Dict[str, Any], result: Dict[str, Any]) -> Any:
        """An attempt has ended well, with this."""

    def on_failed(self, instructions: Dict[str, Any], error: BaseException) -> Any:
        """An attempt has failed."""

    @property
    def logger(self) -> Any:
        """A logger whose lines go into the log of the node that runs it, unless another was set."""
        return self.context.logger if self._logger is None else self._logger

    @logger.setter
    def logger(self, logger: Any) -> None:
        self._logger = logger

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

    @property
    def session(self) -> Session:
        """See ``Context.session``."""
        return self.context.session

    def item(self, value: Any) -> None:
        """See ``Context.item``."""
        self.context.item(value)


def phase(job_type: str, concurrency: int = 1) -> Callable[[_Function], _Function]:
    """Makes a phase of a function of instructions, or of instructions and a ``Context``.

    The function itself stays as it was, so that tests may call it.
    """
    if not isinstance(job_type, str):
        raise TypeError("a phase needs its job type: write @phase('resize-image')")

    def make(function: _Function) -> _Function:
        if not inspect.isfunction(function):
            raise TypeError(f"@phase({job_type!r}) makes phases of functions, not of {function!r}")
        needed = [
            one
            for one in inspect.signature(function).parameters.values()
            if one.default is one.empty
            and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
        ]
        if len(needed) not in (1, 2):
            raise TypeError(
                f"{function.__name__} must take instructions, or instructions and a context"
            )

        def execute(self: Phase, instructions: Dict[str, Any]) -> Any:
            return function(instructions, *([self.context] if len(needed) == 2 else []))

        attributes = {
            "job_type": job_type,
            "concurrency": concurrency,
            "execute": execute,
            "__doc__": function.__doc__,
            "__module__": function.__module__,
        }
        setattr(function, _MARK, type(function.__name__, (Phase,), attributes))
        return function

    return make


#: Where a function keeps the phase that was made of it.
_MARK = "_carbonmesh_phase"


def phase_of(value: Any) -> Optional[Type[Phase]]:
    """The phase that a class or a function is, if it is one."""
    if inspect.isfunction(value):
        return getattr(value, _MARK, None)
    is_phase = isinstance(value, type) and issubclass(value, Phase) and value is not Phase
    return value if is_phase else None


def phases_in(namespace: Dict[str, Any]) -> List[Type[Phase]]:
    """The phases that a file defines or imports.

    Raises ``TypeError`` for a class that cannot be one.
    """
    found = [one for one in map(phase_of, list(namespace.values())) if one is not None]
    named: Dict[str, Type[Phase]] = {}
    for one in dict.fromkeys(found):
        if one.job_type is None:
            # A base of others needs no name of its own.
            if any(other is not one and issubclass(other, one) for other in found):
                continue
            raise TypeError(
                f"class {one.__name__} has no job_type: add, for example, job_type = 'resize-image'"
            )
        try:
            checked_name(one.job_type)
        except TypeError as error:
            raise TypeError(f"class {one.__name__}: job_type {error}") from None
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
