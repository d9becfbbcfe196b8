"""``python3 -m carbonmesh FILE.py``: the phase host that nodes start for a file of handlers."""

from __future__ import annotations

import argparse
import runpy
import sys
import traceback
from pathlib import Path
from typing import List, Optional

from .host import Host
from .phase import phases_in
from .pipeline import pipelines_in
from .wire import Wire


def main(arguments: Optional[List[str]] = None) -> int:
    """Loads the file and serves; the exit code is 2 for a wrong command line, 1 for a wrong file."""
    parser = argparse.ArgumentParser(prog="python3 -m carbonmesh", description=__doc__)
    parser.add_argument("file", type=Path, help="a file with classes of Phase")
    parser.add_argument("--phase", action="append", default=[], help="offer only this job type")
    parser.add_argument("--concurrency", type=int, help="attempts at once in this process")
    options = parser.parse_args(arguments)
    if not options.file.is_file():
        parser.error(f"there is no file {options.file}")
    if options.concurrency is not None and options.concurrency < 1:
        parser.error("--concurrency must be 1 or more")
    # First of all: what the file prints while it is loaded is no frame either.
    wire = Wire()
    sys.path.insert(0, str(options.file.resolve().parent))
    # Handlers see a command line of their own.
    sys.argv = [str(options.file)]
    try:
        namespace = runpy.run_path(str(options.file), run_name=options.file.stem)
        phases = phases_in(namespace)
        pipelines = pipelines_in(namespace)
    except Exception:
        traceback.print_exc()
        return 1
    if options.phase:
        known = {one.job_type for one in phases}
        for name in options.phase:
            if name not in known:
                parser.error(f"--phase {name}: the file has {', '.join(sorted(known)) or 'none'}")
        phases = [one for one in phases if one.job_type in options.phase]
    if not phases:
        print(
            f"{options.file} has no handlers: it must have a class of Phase with a job_type",
            file=sys.stderr,
        )
        return 1
    Host(wire, phases, pipelines, options.concurrency or min(one.concurrency for one in phases)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
