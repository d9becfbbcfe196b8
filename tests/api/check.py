"""Holds a real node to the document of its HTTP interface, with schemathesis."""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

# Left out, and why.
OPERATIONS = {
    # The node would take nothing more.
    "drainNode",
}
CHECKS = {
    # Bodies that may be left out are read as if they were, whatever their Content-Type is.
    "missing_required_header",
    # There is nothing to log in to here.
    "ignored_auth",
    # A job that was discarded stays known to replicas for a moment, and one that is applied anew is
    # there again: that is not use after its end.
    "use_after_free",
    "ensure_resource_availability",
    # The document says what may be, the server what is: a job may be unknown, a phase may not wait.
    "positive_data_acceptance",
}
PIPELINE = {"name": "reports", "phases": ["step", {"name": "sign", "wait_for": "approval"}]}


def ask(base, method, path, document=None):
    """Asks until it is done: a node that has just started may not coordinate yet."""
    body = None if document is None else json.dumps(document).encode()
    headers = {"content-type": "application/json"}
    until = time.monotonic() + 60
    while True:
        request = urllib.request.Request(base + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            if error.code < 500 or time.monotonic() > until:
                raise
            time.sleep(0.2)


def start(program, folder):
    config = folder / "node.toml"
    config.write_text("mdns = false\n[phases.step]\nslots = 4\ncommand = ['cat']\n")
    ready = folder / "ready"
    flags = ["--config", config, "--data-dir", folder / "data", "--ready-file", ready, "--name", "api"]
    flags += ["--http", "127.0.0.1:0", "--listen", "127.0.0.1:0"]
    log = open(folder / "log", "wb")
    node = subprocess.Popen([program, "up", *map(str, flags)], stderr=log)
    until = time.monotonic() + 60
    while not ready.exists():
        if node.poll() is not None or time.monotonic() > until:
            node.kill()
            sys.exit(f"the node does not start:\n{(folder / 'log').read_text()}")
        time.sleep(0.02)
    return node, json.loads(ready.read_text())["http"]


def prepare(base):
    ask(base, "PUT", "/v1/pipelines/reports", PIPELINE)
    jobs = [ask(base, "POST", "/v1/pipelines/reports/jobs", {"n": n})["id"] for n in range(3)]
    ask(base, "POST", f"/v1/jobs/{jobs[0]}/signals/approval", {"by": "test"})
    ask(base, "GET", f"/v1/jobs/{jobs[0]}?wait=30s")


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--program", required=True, help="the carbonmesh program")
    options.add_argument("--schemathesis", default="schemathesis", help="its program")
    options.add_argument("--examples", type=int, default=40, help="for each path")
    options.add_argument("--seconds", type=int, default=240, help="for all of it")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--quick", action="store_true", help="leave out what is made up: about a minute in all")
    given, more = options.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="carbonmesh-api-") as folder:
        folder = pathlib.Path(folder)
        node, base = start(given.program, folder)
        try:
            prepare(base)
            command = [given.schemathesis, "run", f"{base}/v1/openapi.json", "--checks", "all"]
            command += ["--phases", "examples,coverage" if given.quick else "examples,coverage,fuzzing"]
            command += ["--exclude-checks", ",".join(sorted(CHECKS))]
            for operation in sorted(OPERATIONS):
                command += ["--exclude-operation-id", operation]
            command += ["--max-examples", str(given.examples), "--seed", str(given.seed)]
            command += ["--generation-database", "none", "--request-timeout", "60", *more]
            try:
                hooks = {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(pathlib.Path(__file__).parent)}
                environment = {**os.environ, **hooks}
                run = subprocess.run(command, cwd=folder, env=environment, timeout=given.seconds)
                code = run.returncode
            except subprocess.TimeoutExpired:
                sys.exit(f"it was not done within {given.seconds} s")
            if node.poll() is not None:
                sys.exit(f"the node has ended:\n{(folder / 'log').read_text()[-4000:]}")
            ask(base, "GET", "/healthz")
        finally:
            node.terminate()
            node.wait(30)
        if code:
            print((folder / "log").read_text()[-4000:], file=sys.stderr)
        sys.exit(code)


if __name__ == "__main__":
    main()
