"""``python3 -m carbonmesh FILE.py``: the phase host that nodes start for a file of handlers."""

from __future__ import annotations

import argparse
import sys
import traceback
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any, Dict, List, Optional

from .host import Host
from .phase import phases_in
from .pipeline import pipelines_in
from .wire import Wire


def main(arguments: Optional[List[str]] = None) -> int:
    """Loads the file and serves.

    Returns the exit code if that does not work: 2 for a wrong command line, 1 for a wrong file.
    """
    parser = argparse.ArgumentParser(prog="python3 -m carbonmesh", description=__doc__)
    parser.add_argument("file", type=Path, help="a file with classes of Phase")
    parser.add_argument(
        "--phase", action="append", default=[], metavar="JOB_TYPE", help="offer only this; repeatable"
    )
    parser.add_argument("--concurrency", type=int, help="attempts at once in this process")
    options = parser.parse_args(arguments)
    if not options.file.is_file():
        parser.error(f"there is no file {options.file}")
    if options.concurrency is not None and options.concurrency < 1:
        parser.error("--concurrency must be 1 or more")
    # Before anything of the file runs: what it prints is no frame.
    wire = Wire()
    try:
        namespace = _loaded(options.file)
        phases = phases_in(namespace)
        pipelines = pipelines_in(namespace)
    except BaseException:  # A file that calls sys.exit() is wrong, too.
        traceback.print_exc()
        return 1
    if options.phase:
        known = {str(one.job_type) for one in phases}
        for name in options.phase:
            if name not in known:
                parser.error(f"--phase {name}: the file has {', '.join(sorted(known)) or 'none'}")
        phases = [one for one in phases if one.job_type in options.phase]
    if not phases and not pipelines:
        print(
            f"{options.file} has no handlers: it must have a class of Phase with a job_type",
            file=sys.stderr,
        )
        return 1
    concurrency = options.concurrency or min((one.concurrency for one in phases), default=1)
    try:
        Host(wire, phases, pipelines, concurrency).run()
    except ValueError as error:
        print(f"{options.file}: what it offers {error}", file=sys.stderr)
    return 1


def _loaded(file: Path) -> Dict[str, Any]:
    """Runs the file as the module that its name says, so that pickles and child processes find it."""
    name, path = file.stem, file.resolve()
    if name in sys.modules:
        raise ImportError(f"{file} has the name of the module {name!r}: rename it")
    sys.path.insert(0, str(path.parent))
    # Handlers see a command line of their own.
    sys.argv = [str(file)]
    spec = spec_from_loader(name, SourceFileLoader(name, str(path)))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return vars(module)


if __name__ == "__main__":
    sys.exit(main())
