"""The frames between a node and this process: one JSON object a line (``docs/phase-hosts.md``).

The frames have descriptors of their own, so that neither ``print`` nor a child process can write
between them, or read any.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any, Dict, Iterator, List

#: The longest frame, in bytes, until the node says how long one may be.
MAX_FRAME = 16 << 20

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode


class Wire:
    """Reads and writes frames; takes standard input and output away from everybody else."""

    def __init__(self) -> None:
        self._input = os.fdopen(os.dup(0), "rb", buffering=1 << 16)
        self._output = os.dup(1)
        # Handlers that read find nothing, and what they print belongs to the log.
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        #: The longest frame that the node takes, in bytes.
        self.max_frame = MAX_FRAME
        #: Whether this is a child of the process that speaks with the node.
        self.is_child = False
        # Who writes may be interrupted by a signal handler that logs.
        self._lock = threading.RLock()
        self._waiting: List[bytes] = []
        self._is_writing = False
        os.register_at_fork(after_in_child=self._leave)

    def frames(self) -> Iterator[Dict[str, Any]]:
        """Comes to an end with the node."""
        for line in self._input:
            if not line.endswith(b"\n"):
                return  # The node was lost within it.
            yield json.loads(line)

    def line(self, frame: Dict[str, Any]) -> bytes:
        """A frame as it is written.

        Raises ``ValueError`` if it is no JSON, or too long.
        """
        try:
            # Half a surrogate pair, as in the name of a file that is no UTF-8, is no text for others.
            line = _encode(frame).encode("utf-8", "replace")
        except Exception as error:  # Classes of others have a say in what they are in JSON.
            raise ValueError(f"is no JSON: {error}") from error
        if len(line) > self.max_frame:
            raise ValueError(f"is too long: {len(line)} bytes of {self.max_frame} (max_frame)")
        return line + b"\n"

    def send(self, frame: Dict[str, Any]) -> None:
        """Writes a frame. Raises ``ValueError`` as ``line`` does; nothing is written then."""
        self.write(self.line(frame))

    def write(self, line: bytes) -> None:
        """Writes a line, at once: nobody knows how long what comes next will take."""
        with self._lock:
            self._waiting.append(line)
            if self._is_writing:
                return
            self._is_writing = True
            try:
                while self._waiting:
                    self._write_all(self._waiting.pop(0))
            finally:
                self._is_writing = False

    def _write_all(self, line: bytes) -> None:
        written = 0
        while written < len(line):
            try:
                written += os.write(self._output, line[written:] if written else line)
            except BrokenPipeError:
                # The node is gone: nobody wants what is done here any more.
                os._exit(0)

    def _leave(self) -> None:
        """A child that was forked has no attempts to speak of, and nobody else's place in a line."""
        self.is_child = True
        self._lock = threading.RLock()
        self._waiting, self._is_writing = [], False
        nothing = os.open(os.devnull, os.O_RDWR)
        for taken in (self._input.fileno(), self._output):
            os.dup2(nothing, taken, inheritable=False)
        os.close(nothing)
