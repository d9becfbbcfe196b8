"""The frames between a node and this process: one JSON object a line (``docs/phase-hosts.md``).

The frames have a descriptor of their own, so that neither ``print`` nor a child process can write
between them.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any, Dict, Iterator

#: What waits is written at the latest when it has grown to this.
MOST_WAITING = 64 * 1024

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode


class Wire:
    """Reads and writes frames; takes standard output away from everybody else."""

    def __init__(self) -> None:
        self._input = os.fdopen(os.dup(0), "rb", buffering=1 << 16)
        self._output = os.dup(1)
        # Handlers that read find nothing, and what they print belongs to the log.
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        self._lock = threading.Lock()
        self._waiting = bytearray()

    def frames(self) -> Iterator[Dict[str, Any]]:
        """Comes to an end with the node."""
        for line in self._input:
            yield json.loads(line)

    def send(self, frame: Dict[str, Any], more: bool = False) -> None:
        """Writes a frame; with ``more``, not before others follow.

        Raises ``TypeError`` or ``ValueError`` if it is no JSON; nothing is written then.
        """
        # Half a surrogate pair, as in the name of a file that is no UTF-8, is no text for others.
        line = _encode(frame).encode("utf-8", "replace")
        with self._lock:
            self._waiting += line
            self._waiting += b"\n"
            if not more or len(self._waiting) >= MOST_WAITING:
                self._flush()

    def flush(self) -> None:
        """Writes what waits."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        waiting = memoryview(bytes(self._waiting))
        self._waiting.clear()
        while waiting:
            try:
                waiting = waiting[os.write(self._output, waiting) :]
            except (BrokenPipeError, OSError):
                # The node is gone: nobody wants what is done here any more.
                os._exit(1)
