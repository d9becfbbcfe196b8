"""Tries what operators install and look at, on real nodes; see README.md beside this file."""

import argparse
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
# The most that a unit may expose, by what systemd counts; 10 is everything.
MOST_EXPOSED = "2.0"
WORK = "import json, sys; d = json.load(sys.stdin); sys.exit(65) if d.get('fail') else print('{}')"
CONFIG = f"""\
# Nobody listens there, nor below: what is told of both is told all the same.
otlp_endpoint = "http://127.0.0.1:9/"
[phases.ops-work]
slots = 1
command = ["python3", "-c", {json.dumps(WORK)}]

[notify.ops]
url = "http://127.0.0.1:9/"
"""
OPENMETRICS = "application/openmetrics-text; version=1.0.0"

# What two nodes that are well may not tell of; with its labels.
SELDOM = {
    "carbonmesh_network_connections_failed_total": {"direction"},
    "carbonmesh_stream_sessions_ended_total": {"reason"},
}


class Skipped(Exception):
    """A program that a check needs is not here."""


def need(program, package):
    found = shutil.which(program)
    if not found:
        raise Skipped(f"{program} is not here (Debian: {package})")
    return found


def run(*command, **more):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **more)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def until(what, question, seconds=30):
    end = time.monotonic() + seconds
    while True:
        try:
            found = question()
        except OSError:
            found = None
        if found:
            return found
        assert time.monotonic() < end, f"after {seconds} s it does not hold that {what}"
        time.sleep(0.1)


class Node:
    """One node on loopback, with ports that the system chose."""

    def __init__(self, program, folder, name, peers=(), env=None, config=CONFIG, http="127.0.0.1:0"):
        self.program, self.folder, self.name, self.http = program, pathlib.Path(folder), name, http
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config, self.peers, self.env = config, peers, env or {}
        self.start()

    def start(self):
        (self.folder / "node.toml").write_text(self.config)
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        with open(self.folder / "log", "ab") as log:
            peers = [part for peer in self.peers for part in ("--peer", peer)]
            clean = {name: value for name, value in os.environ.items() if not name.startswith(("CARBONMESH_", "NOTIFY_", "WATCHDOG_"))}
            self.process = subprocess.Popen(
                [self.program, "up", "--data-dir", self.folder / "data", "--name", self.name, "--http", self.http,
                 "--listen", "/ip4/127.0.0.1/tcp/0", "--no-mdns", "--config", self.folder / "node.toml",
                 "--ready-file", ready, *peers],
                stdout=log, stderr=log, env={**clean, **self.env})
        try:
            until(f"{self.name} serves", lambda: ready.exists() or self.process.poll() is not None)
            assert ready.exists(), (self.folder / "log").read_text()
        except BaseException:
            self.kill()
            raise
        told = json.loads(ready.read_text())
        self.api, self.listen = told["http"], told["listen"][0]

    def get(self, path, accept="application/json"):
        request = urllib.request.Request(self.api + path, headers={"accept": accept})
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.read().decode()

    def json(self, path):
        return json.loads(self.get(path))

    def send(self, method, path, body):
        request = urllib.request.Request(self.api + path, json.dumps(body).encode(), {"content-type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.loads(response.read() or b"null")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0, (self.folder / "log").read_text()[-2000:]

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


class Checks:
    def __init__(self, arguments, folder):
        self.program, self.folder = arguments.program, pathlib.Path(folder)
        self.only, self.quick = arguments.only, arguments.quick
        self.failures, self.skipped = [], []

    def check(self, name, act):
        if self.only and self.only not in name:
            return
        began = time.monotonic()
        try:
            act()
        except Skipped as why:
            self.skipped.append(name)
            print(f"skipped {name}: {why}", flush=True)
        except Exception as error:
            self.failures.append(name)
            print(f"FAILED  {name}\n    {error}", flush=True)
            if not isinstance(error, AssertionError):
                traceback.print_exc()
        else:
            print(f"ok      {name} ({time.monotonic() - began:.1f} s)", flush=True)

    # -------------------------------------------------------------------------------- with nodes

    def with_cluster(self):
        """Two nodes that have done something of everything, for the checks that look at them."""
        with contextlib.ExitStack() as stack:
            one = stack.enter_context(Node(self.program, self.folder / "one", "one"))
            two = stack.enter_context(Node(self.program, self.folder / "two", "two", [one.listen]))
            until("two nodes have met", lambda: one.json("/v1/status")["members"]["alive"] == 2)
            for name, phase in [("ops", "ops-work"), ("ops-waits", "ops-absent")]:
                one.send("PUT", f"/v1/pipelines/{name}", {"name": name, "phases": [phase]})
                until("somebody coordinates", lambda: one.json(f"/v1/pipelines/{name}")["coordinator"])
            for at in range(5):
                one.send("POST", "/v1/pipelines/ops/jobs?wait=30s", {"n": at})
            one.send("POST", "/v1/pipelines/ops/jobs?wait=30s", {"fail": True})
            one.send("POST", "/v1/pipelines/ops-waits/jobs", {})
            self.nodes = one, two
            until("all is counted", lambda: 'state="dead"} 1' in self.all_metrics())
            # A queue's age is zero at first; the machine is looked at every five seconds.
            until("the queue has an age", lambda: re.search(r"queue_oldest_age_seconds\{[^}]*ops-waits[^}]*\} 0*[1-9.]", self.all_metrics()))
            until("processors are measured", lambda: "carbonmesh_host_cpu_usage_ratio" in one.get("/metrics"))
            self.check("metrics: promtool finds nothing to say", self.metrics)
            self.check("metrics: both formats have the same samples", self.formats)
            self.check("metrics: docs/metrics.md has each of them", self.page)
            self.check("dashboard and alerts name what there is", self.dashboard)
            self.check("history: it is told, and survives a restart", self.history)

    def all_metrics(self):
        return "".join(node.get("/metrics") for node in self.nodes)

    def metrics(self):
        promtool = need("promtool", "prometheus")
        for node in self.nodes:
            done = subprocess.run([promtool, "check", "metrics"], input=node.get("/metrics"), capture_output=True, text=True)
            assert done.returncode == 0 and not done.stdout + done.stderr, done.stdout + done.stderr

    def formats(self):
        node = self.nodes[0]
        modern, classic = node.get("/metrics", OPENMETRICS), node.get("/metrics")
        assert modern.endswith("# EOF\n")
        names = [{line.split("{")[0].split(" ")[0] for line in text.splitlines() if line and not line.startswith("#")} for text in (modern, classic)]
        assert names[0] == names[1], names[0] ^ names[1]
        # Each sample belongs to something that is described, under its own name or that of its histogram.
        described = dict(re.findall(r"^# TYPE (\S+) (\S+)$", classic, re.M))
        for name in names[1]:
            of = name if name in described else re.sub("_(bucket|sum|count)$", "", name)
            assert of in described and (of == name) == (described[of] != "histogram"), name
            assert re.search(rf"^# HELP {of} \S", classic, re.M), name

    def page(self):
        """docs/metrics.md has a row for each metric, with its kind and its labels, and for nothing else."""
        kinds, labels = {}, {}
        for text in (node.get("/metrics") for node in self.nodes):
            kinds.update(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
            for name, found in re.findall(r"^([a-z_0-9]+?)(?:_bucket|_sum|_count)?\{(.*)\} ", text, re.M):
                labels.setdefault(name, set()).update(label for label in re.findall(r'(\w+)="', found) if label != "le")
        rows = re.findall(r"^\| `((?:carbonmesh|process)_\w+)` \| (\w+) \| ([^|]*)\| [^|]+ \|$", (ROOT / "docs/metrics.md").read_text(), re.M)
        told = {name: kind for name, kind, _ in rows}
        assert len(told) == len(rows), "a metric has two rows"
        # What has not happened yet is told of by nobody.
        missing = {name for name in kinds if name not in told}
        assert not missing, f"docs/metrics.md: add a row for each of {sorted(missing)}"
        gone = {name for name in told if name not in kinds} - set(SELDOM)
        assert not gone, f"docs/metrics.md: no node tells of {sorted(gone)}"
        for name, kind, said in rows:
            assert name in SELDOM or kinds[name] == kind, f"{name} is a {kinds[name]}"
            said = set(re.findall(r"`(\w+)`", said))
            assert name in SELDOM or said == labels.get(name, set()), f"{name} has the labels {labels.get(name)}, not {said}"

    def dashboard(self):
        told = {}
        for text in (self.all_metrics(),):
            for name, labels in re.findall(r"^([a-z_0-9]+)(?:\{(.*)\})? ", text, re.M):
                told.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
        source = (ROOT / "node/src/net/counters.rs").read_text()
        for name, labels in SELDOM.items():
            assert f'"{name.removeprefix("carbonmesh_").removesuffix("_total")}"' in source, name
            told.setdefault(name, set()).update(labels)
        # Prometheus itself adds these, and makes this one.
        told["up"] = set()
        added = {"job", "instance"}
        dashboard = json.loads((EXAMPLES / "grafana/carbonmesh.json").read_text())
        queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
        queries += [one["definition"].removeprefix("label_values(").rsplit(",", 1)[0] for one in dashboard["templating"]["list"] if "definition" in one]
        queries += re.findall(r"expr: '((?:[^']|'')*)'", (EXAMPLES / "prometheus/alerts.yml").read_text())
        assert len(queries) > 40, len(queries)
        for query in queries:
            names = re.findall(r"\b((?:carbonmesh|process)_[a-z_0-9]+|up)\b(?:\{([^}]*)\})?", query)
            assert names, query
            known = set(added)
            for name, selector in names:
                assert name in told, f"{query}: no node tells of {name}"
                known |= told[name]
                for label in re.findall(r"(\w+)\s*[=!]~?", re.sub(r'"[^"]*"', '""', selector)):
                    assert label in told[name] | added, f"{query}: {name} has no label {label}"
            for group in re.findall(r"\bby \(([^)]*)\)", query):
                for label in group.split(","):
                    assert label.strip() in known, f"{query}: nothing has a label {label.strip()}"
        identifiers = [panel["id"] for panel in dashboard["panels"]]
        assert len(identifiers) == len(set(identifiers))
        for panel in dashboard["panels"]:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24, panel["title"]

    def history(self):
        one = self.nodes[0]
        def points(pipeline, range_="hour"):
            return one.json(f"/v1/history?pipeline={pipeline}&range={range_}")["points"]
        found = until("it is told what happened", lambda: (seen := points("ops-waits")) and seen[-1]["queued"] and seen, 40)
        assert {"at", "accepted", "succeeded", "dead", "cancelled", "queued", "running", "p50_ms", "p95_ms"} <= set(found[0])
        one.send("POST", "/v1/pipelines/ops/jobs?wait=30s", {})
        until("the job is seen", lambda: any(point["succeeded"] and point["p50_ms"] for point in points("ops")), 30)
        day, all_ = points("ops", "day"), one.json("/v1/history?range=day")
        assert day and sum(point["succeeded"] for point in day) >= 1 and all_["step_s"] == 300, day
        before = points("ops")
        one.stop()
        one.start()
        until("what was known is known again", lambda: points("ops")[:len(before) - 1] == before[:-1], 30)
        with contextlib.suppress(urllib.error.HTTPError):
            one.get("/v1/history?range=week")
            raise AssertionError("a range that is none is taken")

    # ------------------------------------------------------------------------------ for Prometheus

    def alerts(self):
        promtool, folder = need("promtool", "prometheus"), EXAMPLES / "prometheus"
        run(promtool, "check", "config", "prometheus.yml", cwd=folder)
        run(promtool, "check", "rules", "alerts.yml", cwd=folder)
        run(promtool, "test", "rules", "alerts_test.yml", cwd=folder)
        names = re.findall(r"- alert: (\w+)", (folder / "alerts.yml").read_text())
        tried = re.findall(r"^  - name: (\w+)", (folder / "alerts_test.yml").read_text(), re.M)
        assert names and names == tried, set(names) ^ set(tried)

    # ------------------------------------------------------------------------------- as a service

    def service(self):
        folder = self.folder / "service"
        folder.mkdir()
        told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        told.bind(str(folder / "notify"))
        env = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "1000000"}

        def hear(seconds):
            told.settimeout(seconds)
            return told.recv(4096).decode().splitlines()

        with Node(self.program, folder, "served", env=env) as node:
            first = hear(10)
            assert "READY=1" in first and any(line.startswith("STATUS=node ") for line in first), first
            began = time.monotonic()
            for _ in range(4):
                assert hear(10) == ["WATCHDOG=1"]
            assert time.monotonic() - began < 3, "it says too seldom that it is alive"
            # A process that hangs says nothing.
            node.process.send_signal(signal.SIGSTOP)
            with contextlib.suppress(TimeoutError):
                while True:
                    hear(0.01)
            try:
                raise AssertionError(f"a process that is stopped says {hear(1.5)}")
            except TimeoutError:
                pass
            node.process.send_signal(signal.SIGCONT)
            assert hear(10) == ["WATCHDOG=1"]
            node.process.send_signal(signal.SIGTERM)
            until("it says that it stops", lambda: "STOPPING=1" in hear(10))
            assert node.process.wait(30) == 0
        told.close()
        # Where nobody listens, it serves all the same.
        (folder / "notify").unlink()
        with Node(self.program, folder, "served", env=env) as node:
            assert node.json("/healthz") == {"status": "ok"}
            node.stop()

    def unit(self):
        analyze, unit = need("systemd-analyze", "systemd"), self.folder / "carbonmesh.service"
        text = (ROOT / "packaging/carbonmesh.service").read_text()
        unit.write_text(text.replace("/usr/bin/carbonmesh", str(pathlib.Path(self.program).resolve())))
        done = subprocess.run([analyze, "verify", "--man=no", unit], capture_output=True, text=True)
        assert done.returncode == 0 and "carbonmesh.service" not in done.stderr, done.stderr
        score = subprocess.run([analyze, "security", "--offline=true", "--no-pager", unit], capture_output=True, text=True).stdout
        found = re.search(r"Overall exposure level.*: ([0-9.]+)", score)
        assert found and float(found[1]) <= float(MOST_EXPOSED), score[-300:]

    def package(self):
        need("dpkg-deb", "dpkg")
        build, version = ROOT / "packaging/deb/build", run(self.program, "--version").split()[1]
        [first, second] = [pathlib.Path(run(build, self.program, self.folder / name).strip()) for name in ("first", "second")]
        assert first.read_bytes() == second.read_bytes(), "two builds of one program differ"
        fields = run("dpkg-deb", "--field", first)
        assert f"Version: {version}\n" in fields and "Depends: libc6" in fields, fields
        listing = run("dpkg-deb", "--contents", first)
        for line in listing.splitlines():
            assert " root/root " in line, line
        for path in ("usr/bin/carbonmesh", "usr/lib/systemd/system/carbonmesh.service", "etc/carbonmesh/carbonmesh.toml",
                     "usr/share/bash-completion/completions/carbonmesh", "usr/share/doc/carbonmesh/copyright"):
            assert f" ./{path}\n" in listing + "\n", path
        if shutil.which("lintian"):
            said = subprocess.run(["lintian", "--fail-on", "error", "--tag-display-limit", "0", first], capture_output=True, text=True)
            assert said.returncode == 0, said.stdout
        if os.geteuid() != 0:
            raise Skipped("built and looked at; to install it takes root")
        root = self.folder / "root"
        (root / "var/lib/dpkg/info").mkdir(parents=True)
        (root / "var/lib/dpkg/updates").mkdir()
        (root / "var/lib/dpkg/status").touch()
        dpkg = ["dpkg", f"--root={root}", "--force-script-chrootless", "--force-depends"]
        run(*dpkg, "--install", first)
        installed = root / "usr/bin/carbonmesh"
        assert run(installed, "--version").split()[1] == version
        settings = root / "etc/carbonmesh/carbonmesh.toml"
        with Node(installed, self.folder / "installed", "installed", config=settings.read_text()) as node:
            assert node.json("/v1/version")["version"] == version
            run(installed, "--api", node.api, "status")
            node.stop()
        # What an operator wrote survives an upgrade and a removal, and goes with a purge.
        settings.write_text(settings.read_text() + "\n# mine\n")
        (root / "etc/carbonmesh/secret").write_text("x")
        (root / "var/lib/carbonmesh").mkdir()
        run(*dpkg, "--force-confold", "--install", second)
        assert settings.read_text().endswith("# mine\n")
        run(*dpkg, "--remove", "carbonmesh")
        assert not installed.exists() and settings.exists() and (root / "var/lib/carbonmesh").exists()
        run(*dpkg, "--purge", "carbonmesh")
        assert not (root / "etc/carbonmesh").exists() and not (root / "var/lib/carbonmesh").exists()

    def containers(self):
        """Docker is asked where it is there; else what files say of each other is all that is looked at."""
        folder = EXAMPLES / "docker"
        docker, compose = (folder / "Dockerfile").read_text(), (folder / "compose.yaml").read_text()
        stages = re.findall(r"^FROM \S+(?: AS (\S+))?$", docker, re.M)
        assert stages and all(stages), "each stage has a name"
        for source in re.findall(r"--from=(\S+)", docker):
            assert source in stages, source
        last = docker[docker.rindex("\nFROM "):]
        for word in ("USER ", "HEALTHCHECK ", "ENTRYPOINT "):
            assert word in last, f"the last stage lacks {word.strip()}"
        user = re.search(r"^USER (\d+)", last, re.M)
        assert user and int(user[1]) > 0, "the program must not run as root"
        for target in re.findall(r"target: (\S+)", compose):
            assert target in stages, target
        for service in ("x-node: &node", "  page:"):
            hardened = compose.partition(f"\n{service}\n")[2].split("\n\n")[0]
            for line in ("read_only: true", "cap_drop: [ALL]", 'security_opt: ["no-new-privileges:true"]'):
                assert line in hardened, f"{service.strip()} lacks {line}"
        assert "privileged:" not in compose and "cap_add:" not in compose
        services = re.findall(r"^  (node\d+):$", compose.partition("\nvolumes:")[0], re.M)
        assert services == ["node1", "node2", "node3"], services
        peers = re.search(r'CARBONMESH_PEER: "?([^"\n]+)"?', compose)
        assert peers and peers[1].split(",") == [f"{name}:7401" for name in services], peers
        variables = set(re.findall(r"\b(CARBONMESH_[A-Z_]+)\b", docker + compose))
        help_ = run(self.program, "up", "--help")
        for variable in variables:
            assert variable in help_, f"carbonmesh up has no variable {variable}"
        has_compose = shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
        if not has_compose:
            raise Skipped("there is no docker compose: files were read, nothing was run")
        run("docker", "compose", "--file", folder / "compose.yaml", "config", "--quiet", env={**os.environ, "CARBONMESH_SECRET": "x" * 32})

    def run(self):
        self.check("alerts: each fires for what it is for", self.alerts)
        self.check("service: the manager hears of start, life and stop", self.service)
        self.check("unit: it is valid, and may do little", self.unit)
        if self.quick:
            print("not run package: built, installed, upgraded, removed, purged: make test-ops does it", flush=True)
        else:
            self.check("package: built, installed, upgraded, removed, purged", self.package)
        self.check("containers: the files agree with each other and the program", self.containers)
        if not self.only or any(self.only in name for name in ("metrics", "dashboard", "history")):
            try:
                self.with_cluster()
            except Exception:
                self.failures.append("two nodes that have done something")
                traceback.print_exc()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", required=True, type=lambda path: str(pathlib.Path(path).resolve()))
    parser.add_argument("--only", help="only checks whose names have this in them")
    parser.add_argument("--quick", action="store_true", help="do not build the package, which takes minutes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="carbonmesh-ops-") as folder:
        checks = Checks(arguments, folder)
        checks.run()
    if checks.skipped:
        print(f"{len(checks.skipped)} skipped, in whole or in part")
    if checks.failures:
        print(f"{len(checks.failures)} failed: {'; '.join(checks.failures)}")
        return 1
    print("all that was tried holds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
