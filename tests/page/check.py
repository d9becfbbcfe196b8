"""Uses the page in a real browser against a real cluster; see README.md beside this file."""

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
import threading
import time
import traceback
import urllib.error
import urllib.request

from playwright.sync_api import Error, expect, sync_playwright

import hostile
import serve

WORK = (
    "import json, sys, time; d = json.load(sys.stdin); "
    "[(print('<i>line</i>', n, file=sys.stderr, flush=True), time.sleep(0.5)) for n in range(d.get('say', 0))]; "
    "time.sleep(d.get('sleep', 0.1)); "
    "print('<b>no</b> luck', file=sys.stderr) if d.get('fail') else None; "
    "sys.exit(1) if d.get('fail') else print(json.dumps({'done': True}))"
)
SPLIT = "import json; [print(json.dumps({'n': n})) for n in range(30)]"
CONFIG = f"""\
accept_handlers = ["shell"]

[phases.page-work]
slots = 4
command = ["python3", "-c", {json.dumps(WORK)}]

[phases.page-split]
command = ["python3", "-c", {json.dumps(SPLIT)}]
"""
HANDLER = "cat # <b>what comes</b>\n"
SCHEMA = {
    "type": "object",
    "required": ["title", "size"],
    "properties": {
        "title": {"type": "string", "title": "<b>Title</b>", "description": "What it is called", "minLength": 2},
        "size": {"type": "number", "minimum": 1, "maximum": 10},
        "count": {"type": "integer", "default": 3},
        "colour": {"enum": ["red", "green", 7]},
        "fast": {"type": "boolean"},
        "more": {"type": "object"},
    },
}

W = "page-work"
PIPELINES = [
    {"name": "page-graph", "phases": [
        {"name": "first", "phase": W}, {"name": "left", "phase": W, "after": ["first"]},
        {"name": "right", "phase": W, "after": ["first"], "when": "instructions.right"},
        {"name": "join", "phase": W, "after": ["left", "right"]}]},
    {"name": "page-fail", "phases": [{"name": "try", "phase": W, "max_attempts": 1}]},
    {"name": "page-signal", "phases": [
        {"name": "ask", "phase": W}, {"name": "approve", "wait_for": "approval", "timeout": "3d"},
        {"name": "act", "phase": W}]},
    {"name": "page-items", "phases": [
        {"name": "split", "phase": "page-split"}, {"name": "each", "phase": W, "for_each": "split"},
        {"name": "end", "phase": W}]},
    {"name": "page-undo", "phases": [
        {"name": "charge", "phase": W, "compensate": {"name": "refund", "phase": W}, "input_mapping": "{sleep: `0.1`}"},
        {"name": "deliver", "phase": W, "max_attempts": 1}]},
    {"name": "page-schema", "phases": [{"name": "draw", "phase": W}], "input_schema": SCHEMA},
    {"name": "page-cron", "phases": [{"name": "tick", "phase": W}], "schedules": [
        {"name": "often", "cron": "*/2 * * * * *", "instructions": {"from": "cron"}},
        {"name": "yearly", "cron": "30 4 1 1 *", "timezone": "Europe/Berlin", "missed": "skip"}]},
    {"name": "page-nobody", "phases": [{"name": "absent", "phase": "page-absent"}]},
]


class Cluster:
    """Three nodes on loopback, in a folder of their own."""

    def __init__(self, program, folder):
        self.program, self.folder = program, pathlib.Path(folder)
        (self.folder / "node.toml").write_text(CONFIG)
        ports = free_ports(6)
        self.http, self.listen = ports[:3], ports[3:]
        self.processes = [None, None, None]
        for at in range(3):
            self.start(at)

    def start(self, at):
        log = open(self.folder / f"node{at + 1}.log", "ab")
        peers = [part for port in self.listen for part in ("--peer", f"127.0.0.1:{port}")]
        self.processes[at] = subprocess.Popen(
            [self.program, "up", "--data-dir", self.folder / f"node{at + 1}", "--name", f"n{at + 1}",
             "--http", f"127.0.0.1:{self.http[at]}", "--listen", f"127.0.0.1:{self.listen[at]}",
             "--no-mdns", "--config", self.folder / "node.toml", *peers],
            stdout=log, stderr=log)

    def kill(self, at):
        self.processes[at].send_signal(signal.SIGKILL)
        self.processes[at].wait()

    def stop(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


def free_ports(number):
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def call(api, method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {} if body is None else {"content-type": "application/json"}
    request = urllib.request.Request(api + path, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=30) as response:
        text = response.read()
    return json.loads(text) if text else None


def until(what, question, seconds=30):
    """Asks until the answer is true."""
    end = time.monotonic() + seconds
    while True:
        try:
            found = question()
        except (OSError, urllib.error.URLError):
            found = None
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"after {seconds} s it does not hold that {what}")
        time.sleep(0.2)


class Checks:
    def __init__(self, browser, arguments, api, page_url, cluster):
        self.browser, self.arguments, self.api, self.url, self.cluster = browser, arguments, api, page_url, cluster
        self.failures, self.console, self.foreign, self.axe = [], [], [], {}
        self.expects_failure = False
        self.out = pathlib.Path(arguments.out) if arguments.out else None
        if self.out:
            self.out.mkdir(parents=True, exist_ok=True)
        self.axe_source = pathlib.Path(arguments.axe).read_text() if arguments.axe else None

    def page(self, scheme="light", size=(1400, 900), context_only=False):
        # What axe is made of does not fit the page's policy; everything else is checked with it.
        context = self.browser.new_context(color_scheme=scheme, viewport={"width": size[0], "height": size[1]})
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", self.said)
        page.on("pageerror", lambda error: self.console.append(f"{page.url}: {error}"))
        page.on("request", self.asked)
        return page

    def said(self, message):
        # A refusal is no defect of the page, but the browser notes it.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            self.console.append(f"{message.type}: {message.text}")
        elif message.type == "error" and not self.expects_failure and "status of 4" not in message.text:
            self.console.append(message.text)

    def asked(self, request):
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.foreign.append(request.url)

    def open(self, page, hash_, wait=".panel, .page-head"):
        page.goto(f"{self.url}#/{hash_}")
        page.wait_for_selector(wait)

    def shot(self, page, name):
        if self.out:
            # What stays at the top of the window would lie across the picture.
            page.evaluate("scrollTo({ top: 0, behavior: 'instant' })")
            page.screenshot(path=self.out / f"{name}.png", full_page=True)
        width = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert width <= 0, f"{name} is {width} px wider than the window"
        if self.axe_source:
            page.evaluate(self.axe_source)
            found = page.evaluate("""async () => (await axe.run(document, {
                runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'],
            })).violations.map((one) => `${one.id} (${one.impact}): ${one.help}: ` +
                one.nodes.slice(0, 3).map((node) => node.html.slice(0, 160)).join(' | '))""")
            self.axe[name] = found
            assert not found, f"axe, {name}:\n    " + "\n    ".join(found)

    def check(self, name, act, *arguments):
        before = len(self.console), len(self.foreign)
        began = time.monotonic()
        try:
            act(*arguments)
            assert len(self.console) == before[0], f"the console says: {self.console[before[0]:]}"
            assert len(self.foreign) == before[1], f"requests to other hosts: {self.foreign[before[1]:]}"
        except (AssertionError, Error, OSError) as error:
            self.failures.append(name)
            text = str(error).split("Aria snapshot")[0].strip() or traceback.format_exc(limit=-1)
            print(f"FAILED  {name}\n    {text}", flush=True)
            for context in self.browser.contexts:
                for at, page in enumerate(context.pages):
                    if self.out:
                        with contextlib.suppress(Error):
                            page.screenshot(path=self.out / f"failed-{re.sub('[^a-z]+', '-', name)}-{at}.png")
        else:
            print(f"ok      {name} ({time.monotonic() - began:.1f} s)", flush=True)
        for context in self.browser.contexts:
            context.close()

    def enqueue(self, pipeline, body, query=""):
        return call(self.api, "POST", f"/v1/pipelines/{pipeline}/jobs{query}", body)["id"]

    def state(self, job):
        return call(self.api, "GET", f"/v1/jobs/{job}")["state"]

    def counts(self, pipeline):
        return call(self.api, "GET", f"/v1/pipelines/{pipeline}")["counts"]

    # ------------------------------------------------------------------------------------ views

    def overview(self):
        page = self.page()
        self.open(page, "")
        nodes = page.get_by_role("table", name="Nodes", exact=True)
        expect(nodes.get_by_text("alive", exact=True)).to_have_count(self.nodes())
        expect(nodes).to_contain_text("worker, replica, gateway")
        pipelines = page.get_by_role("table", name="Pipelines")
        for one in PIPELINES:
            expect(pipelines.get_by_role("link", name=one["name"], exact=True)).to_be_visible()
        self.enqueue("page-nobody", {})
        expect(page.get_by_role("list", name="Warnings")).to_contain_text("Nobody offers phase page-absent", timeout=20_000)
        for at in range(20):
            self.enqueue("page-graph", {"n": at})
        rate = page.locator(".tile.wide .tile-value")
        expect(rate).not_to_have_text(re.compile("^[–0]$"), timeout=20_000)
        self.shot(page, "overview")

    def history(self):
        self.enqueue("page-graph", {})

        def seen():
            points = call(self.api, "GET", "/v1/history?pipeline=page-graph&range=hour")["points"]
            return len(points) > 1 and any(point["succeeded"] for point in points)
        until("the node has seen a job succeed", seen, 60)
        page = self.page()
        for view in ["", "pipelines/page-graph"]:
            self.open(page, view)
            panel = page.get_by_role("region", name="What happened", exact=True)
            expect(panel.get_by_role("img", name=re.compile("^Finished per second, the last hour: succeeded .* now, at most [0-9.]"))).to_be_visible()
            expect(panel.get_by_role("img", name=re.compile("^Jobs at once, the last hour: queued .*; running "))).to_be_visible()
            expect(panel.get_by_role("img", name=re.compile("^Time until success, the last hour: half of them within "))).to_be_visible()
            lines = panel.locator("path.line.k0").first.get_attribute("d")
            assert lines.startswith("M"), lines
            expect(panel).to_contain_text("1 h ago")
        day = panel.get_by_role("button", name="Day", exact=True)
        day.press("Enter")
        expect(day).to_have_attribute("aria-pressed", "true")
        # There is one point of five minutes, or two.
        expect(panel).to_contain_text(re.compile("not seen enough yet|1 d ago"))
        expect(panel).not_to_contain_text("1 h ago")
        panel.get_by_role("button", name="Hour", exact=True).click()
        expect(panel).to_contain_text("1 h ago")
        self.shot(page, "history")

    def nodes(self):
        return len(call(self.api, "GET", "/v1/nodes")["nodes"])

    def enqueue_by_form(self):
        page = self.page()
        self.open(page, "pipelines/page-graph")
        page.get_by_role("button", name="Enqueue…").click()
        dialog = page.get_by_role("dialog")
        text = dialog.get_by_label("Instructions, one JSON object")
        text.fill('{"right": true,')
        dialog.get_by_role("button", name="Enqueue", exact=True).click()
        expect(dialog.get_by_text("No JSON")).to_be_visible()
        text.fill("[1]")
        expect(dialog.get_by_text("one JSON object, such as")).to_be_visible()
        # A refresh takes away neither what was typed nor the focus.
        text.fill('{"right": true, "big": 123456789012345678901234567890, "x": 1.50}')
        text.press("ArrowLeft")
        page.wait_for_timeout(4500)
        expect(text).to_be_focused()
        assert text.evaluate("(it) => it.selectionStart === it.value.length - 1"), "the cursor has moved"
        dialog.get_by_label("Idempotency key").fill("the key")
        dialog.get_by_label("Priority").fill("101")
        dialog.get_by_role("button", name="Enqueue", exact=True).click()
        expect(dialog.get_by_role("alert")).to_contain_text("Bad request")
        expect(dialog.get_by_role("alert")).to_contain_text("priority")
        dialog.get_by_label("Priority").fill("7")
        self.shot(page, "enqueue")
        dialog.get_by_role("button", name="Enqueue", exact=True).click()
        expect(dialog.get_by_text("Accepted:")).to_be_visible()
        dialog.get_by_role("button", name="Enqueue another").click()
        expect(dialog.get_by_text("was there already")).to_be_visible()
        dialog.locator(".receipt a").click()
        expect(page.locator("h1")).to_contain_text("Job")
        expect(page.locator(".page-head .badge")).to_have_text("succeeded", timeout=20_000)
        expect(page.get_by_text("the key", exact=True)).to_be_visible()
        # Numbers stay as they were written.
        expect(page.get_by_role("group", name="Instructions")).to_contain_text("123456789012345678901234567890")
        expect(page.get_by_role("group", name="Instructions")).to_contain_text("1.50")
        graph = page.get_by_role("group", name="Phases of this job")
        expect(graph.get_by_role("button", name=re.compile("^right .*, succeeded"))).to_be_visible()
        expect(page.locator(".gantt-bar")).to_have_count(4)
        graph.get_by_role("button", name=re.compile("^join")).press("Enter")
        expect(page.locator("#step-join")).to_have_attribute("open", "")
        self.shot(page, "job")

    def form_of_schema(self):
        page = self.page()
        self.open(page, "pipelines/page-schema")
        page.get_by_role("button", name="Enqueue…").click()
        dialog = page.get_by_role("dialog")
        expect(dialog.get_by_label("count")).to_have_value("3")
        title, size = dialog.get_by_label("<b>Title</b>"), dialog.get_by_label("size")
        dialog.get_by_role("button", name="Enqueue", exact=True).click()
        expect(dialog.get_by_text("This has to be given.")).to_have_count(2)
        # Nodes keep the properties of a schema in the order of their names.
        expect(size).to_be_focused()
        title.fill("x")
        expect(dialog.get_by_text("At least 2 characters are needed.")).to_be_visible()
        size.fill("11")
        expect(dialog.get_by_text("The most is 10.")).to_be_visible()
        self.shot(page, "enqueue-schema-wrong")
        title.fill("A <b>box</b>")
        size.fill("1.50")
        expect(dialog.locator("[aria-invalid=true]")).to_have_count(0)
        dialog.get_by_label("colour").select_option("7")
        dialog.get_by_label("fast").check()
        dialog.get_by_label("more").fill('{"a": [1]')
        dialog.get_by_role("button", name="Enqueue", exact=True).click()
        expect(dialog.get_by_label("more")).to_be_focused()
        dialog.get_by_label("more").fill('{"a": [1]}')
        # What was given stays, from fields to JSON and back.
        dialog.get_by_role("button", name="As JSON").click()
        text = dialog.get_by_label("Instructions, one JSON object")
        expect(text).to_have_value(re.compile('"colour": 7'))
        text.fill('{"title": "A <b>box</b>", "size": 1.5, "strange": 1}')
        dialog.get_by_role("button", name="As fields").click()
        expect(dialog.get_by_text("There is no field for strange.")).to_be_visible()
        text.fill('{"title": "A <b>box</b>", "size": 2, "colour": 7, "fast": true, "more": {"a": [1]}}')
        dialog.get_by_role("button", name="As fields").click()
        expect(size).to_have_value("2")
        expect(dialog.get_by_label("fast")).to_be_checked()
        size.fill("1.50")
        self.shot(page, "enqueue-schema")
        dialog.get_by_role("button", name="Enqueue", exact=True).press("Enter")
        expect(dialog.get_by_text("Accepted:")).to_be_visible()
        dialog.locator(".receipt a").click()
        expect(page.locator("h1")).to_contain_text("Job")
        id_ = page.url.rsplit("/", 1)[1]
        found = call(self.api, "GET", f"/v1/jobs/{id_}")["instructions"]
        assert found == {"title": "A <b>box</b>", "size": 1.5, "colour": 7, "fast": True, "more": {"a": [1]}}, found
        expect(page.get_by_role("group", name="Instructions")).to_contain_text("1.50")

    def map_of_nodes(self):
        page = self.page()
        self.open(page, "nodes")
        table = page.get_by_role("table", name="Connections and coordinators")
        names = sorted(one["name"] for one in call(self.api, "GET", "/v1/nodes")["nodes"])
        for name in names:
            row = table.get_by_role("row").filter(has=page.get_by_role("cell", name=name, exact=True))
            others = [other for other in names if other != name]
            expect(row.get_by_role("cell").nth(2)).to_contain_text(re.compile("all|" + ".*".join(others)), timeout=20_000)
            expect(row.get_by_role("cell").nth(3)).to_have_text("–")
        drawn = page.get_by_role("group", name=re.compile("^Map of the nodes"))
        expect(drawn.locator("line.w-joined")).to_have_count(len(names) * (len(names) - 1) // 2)
        for one in PIPELINES:
            lead = call(self.api, "GET", f"/v1/pipelines/{one['name']}")
            row = table.get_by_role("row").filter(has=page.get_by_role("cell", name=lead["coordinator"]["name"], exact=True))
            expect(row).to_contain_text(re.compile(f"{one['name']} term {lead['term']}|and \\d+ more"))
        self.shot(page, "nodes")
        first = drawn.get_by_role("link").first
        first.focus()
        first.press("Enter")
        expect(page.locator(".card.chosen")).to_have_count(1)
        expect(page.get_by_role("button", name="Ask again")).to_be_visible()

    def counts_at_phases(self):
        page = self.page()
        slots = sum(offer["slots"] for node in call(self.api, "GET", "/v1/nodes")["nodes"] for offer in node["phases"] if offer["phase"] == W)
        jobs = [self.enqueue("page-graph", {"sleep": 6}) for _ in range(slots + 5)]
        self.open(page, "pipelines/page-graph")
        graph = page.get_by_role("group", name="Phases of page-graph")
        first = graph.get_by_role("button", name=re.compile("^first 5 wait · \\d+ run"))
        expect(first).to_be_visible(timeout=20_000)
        row = page.locator("#phase-first")
        expect(row.get_by_role("cell").nth(3)).to_have_text("5")
        expect(row.get_by_role("cell").nth(4)).to_have_text(str(slots))
        self.shot(page, "pipeline-counts")
        # The newest come first, unless the oldest are asked for.
        rows = page.get_by_role("table", name="Jobs of page-graph").get_by_role("row")
        expect(rows.nth(1).get_by_role("link")).to_have_text(jobs[-1])
        page.get_by_label("from").select_option("oldest")
        expect(rows.nth(1).get_by_role("link")).not_to_have_text(jobs[-1])
        assert "order=oldest" in page.url, page.url
        page.get_by_label("from").select_option("")
        expect(rows.nth(1).get_by_role("link")).to_have_text(jobs[-1])
        for job in jobs:
            call(self.api, "POST", f"/v1/jobs/{job}/cancel", {})

    def schedules(self):
        page = self.page()
        self.open(page, "pipelines/page-cron")
        table = page.get_by_role("table", name="Schedules")
        often = table.get_by_role("row").filter(has_text="often")
        expect(often.locator(".badge")).to_be_visible(timeout=20_000)
        expect(often.get_by_role("listitem")).to_have_count(3)
        yearly = table.get_by_role("row").filter(has_text="yearly")
        expect(yearly).to_contain_text("none yet")
        expect(yearly).to_contain_text("Europe/Berlin")
        next_ = yearly.locator("time").first.get_attribute("datetime")
        assert re.fullmatch(r"\d{4}-01-01T03:30:00\.000Z", next_), next_
        often.get_by_role("link").click()
        expect(page.locator("h1")).to_contain_text("Job")
        expect(page.get_by_role("group", name="Instructions")).to_contain_text("cron")
        expect(page.get_by_text(re.compile("^schedule/often/"))).to_be_visible()

    def handlers(self):
        call(self.api, "PUT", "/v1/handlers/page-kept", {"language": "shell", "source": HANDLER, "slots": 2})
        until("all nodes offer it", lambda: len([node for node in call(self.api, "GET", "/v1/nodes")["nodes"]
                                                 if any(offer["phase"] == "page-kept" for offer in node["phases"])]) == self.nodes())
        page = self.page()
        self.open(page, "")
        page.get_by_role("navigation", name="Main").get_by_role("link", name="Handlers").click()
        table = page.get_by_role("table", name="Handlers")
        row = table.get_by_role("row").filter(has_text="page-kept")
        kept = call(self.api, "GET", "/v1/handlers/page-kept")
        expect(row).to_contain_text("shell")
        expect(row).to_contain_text(kept["sha256"][:12])
        for node in call(self.api, "GET", "/v1/nodes")["nodes"]:
            expect(row.get_by_role("link", name=node["name"], exact=True)).to_be_visible()
        self.shot(page, "handlers")
        row.get_by_role("button", name="Source of page-kept").press("Enter")
        expect(page.get_by_role("dialog")).to_contain_text("cat # <b>what comes</b>")
        self.shot(page, "handler-source")
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)

    def logs(self):
        page = self.page()
        job = self.enqueue("page-graph", {"say": 6})
        self.open(page, f"jobs/{job}")
        lines = page.get_by_role("group", name="Lines of the log")
        expect(lines).to_contain_text("<i>line</i> 0", timeout=20_000)
        assert self.state(job) != "succeeded", "they came only when it was over"
        expect(lines).to_contain_text("<i>line</i> 5", timeout=20_000)
        expect(page.locator(".page-head .badge")).to_have_text("succeeded", timeout=60_000)
        # All are there for whoever comes later, and none twice.
        page.reload()
        expect(lines.locator(".log-line").filter(has_text="first#1")).to_have_count(6, timeout=20_000)

    def draining(self):
        page = self.page()
        self.open(page, "nodes")
        page.get_by_role("button", name="Drain node n1").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("takes no new work until it is started again")
        self.shot(page, "drain")
        dialog.get_by_role("button", name="Back").click()
        page.get_by_role("button", name="Drain node n1").click()
        dialog.get_by_role("button", name="Drain it").click()
        expect(page.locator(".note")).to_contain_text("It takes no more work", timeout=20_000)
        other = f"http://127.0.0.1:{self.cluster.http[1]}"
        until("others coordinate", lambda: all(one["coordinator"] and one["coordinator"]["name"] != "n1"
                                               for one in call(other, "GET", "/v1/status")["pipelines"]))

    def job_is_followed(self):
        page = self.page()
        job = self.enqueue("page-graph", {"sleep": 3})
        self.open(page, f"jobs/{job}")
        expect(page.locator(".page-head .badge")).to_have_text("running")
        expect(page.locator(".p-running")).not_to_have_count(0)
        page.locator("#step-left > summary").click()
        expect(page.locator(".page-head .badge")).to_have_text("succeeded", timeout=30_000)
        assert page.locator("#step-left").evaluate("(it) => it.open"), "what was opened was closed"
        expect(page.locator(".p-skipped")).to_have_count(1)

    def waiting_is_explained(self):
        page = self.page()
        job = self.enqueue("page-graph", {}, "?delay=1h")
        self.open(page, f"jobs/{job}")
        expect(page.get_by_role("region", name="Why it waits")).to_contain_text("may not begin before")
        page.get_by_role("button", name="Cancel…").click()
        page.get_by_label("Reason, for people").fill("not needed")
        page.get_by_role("button", name="Cancel it").click()
        expect(page.locator(".page-head .badge")).to_have_text("cancelled")
        expect(page.get_by_role("region", name="Why it ended")).to_contain_text("not needed")
        job = self.enqueue("page-nobody", {})
        self.open(page, f"jobs/{job}")
        expect(page.get_by_role("region", name="Why it waits")).to_contain_text("no node that can be reached offers phase page-absent")
        self.shot(page, "job-waiting")

    def dead_letters(self):
        jobs = [self.enqueue("page-fail", {"fail": True, "n": n}) for n in range(3)]
        until("three jobs are dead", lambda: (self.counts("page-fail") or {}).get("dead") == 3)
        page = self.page()
        self.open(page, "dead")
        section = page.get_by_role("region", name="Dead letters of page-fail")
        expect(section.get_by_role("row")).to_have_count(4)
        self.shot(page, "dead-letters")
        section.get_by_role("button", name=f"Retry job {jobs[0]}").click()
        until("it was tried again", lambda: call(self.api, "GET", f"/v1/jobs/{jobs[0]}")["generation"] == 1)
        until("it is dead again", lambda: self.state(jobs[0]) == "dead")
        until("all are counted", lambda: self.counts("page-fail")["dead"] == 3)
        self.open(page, f"jobs/{jobs[0]}")
        expect(page.locator(".page-head .badge")).to_have_text("dead")
        expect(page.get_by_role("region", name="Why it ended")).to_contain_text("<b>no</b> luck")
        expect(page.get_by_text("Tried again", exact=True)).to_be_visible()
        self.shot(page, "job-dead")
        page.get_by_role("button", name="Retry…").click()
        page.get_by_label("all of it, from the start").check()
        page.get_by_role("button", name="Retry", exact=True).click()
        until("it was tried a third time", lambda: call(self.api, "GET", f"/v1/jobs/{jobs[0]}")["generation"] == 2)
        # The page may still show that it was dead before: what runs again cannot be discarded.
        until("it is dead a third time", lambda: self.state(jobs[0]) == "dead")
        expect(page.locator(".page-head .badge")).to_have_text("dead", timeout=20_000)
        # Each attempt once, though their numbers begin anew with each try.
        expect(page.locator(".gantt-row")).to_have_count(3, timeout=20_000)
        expect(page.locator("#step-try .attempts > li")).to_have_count(3)
        page.get_by_role("button", name="Discard…").click()
        page.get_by_role("button", name="Discard", exact=True).click()
        page.wait_for_url("**/#/pipelines/page-fail")
        until("two are left", lambda: self.counts("page-fail")["dead"] == 2)
        page.get_by_role("navigation", name="Jobs by state").get_by_role("link", name="dead").click()
        page.get_by_role("button", name="Retry 2…").click(timeout=20_000)
        expect(page.get_by_role("dialog")).to_contain_text("2 dead letters will be tried again")
        self.shot(page, "confirm")
        page.get_by_role("button", name="Retry 2", exact=True).click()
        expect(page.get_by_text("2 jobs tried again.")).to_be_visible()
        until("both were tried again", lambda: all(call(self.api, "GET", f"/v1/jobs/{job}")["generation"] == 1 for job in jobs[1:]))
        # Counts are up to two seconds old; what they say may be from before.
        until("both are dead again", lambda: all(self.state(job) == "dead" for job in jobs[1:]))
        page.get_by_role("button", name="Discard 2…").click(timeout=20_000)
        expect(page.get_by_role("dialog")).to_contain_text("2 dead letters will be forgotten. This cannot be undone")
        page.get_by_role("button", name="Discard 2", exact=True).click()
        expect(page.get_by_text("2 jobs forgotten.")).to_be_visible()
        until("none is left", lambda: self.counts("page-fail")["dead"] == 0)
        self.open(page, f"jobs/{jobs[1]}", "h1")
        expect(page.get_by_role("alert")).to_contain_text("Unknown job")

    def signals(self):
        page = self.page()
        job = self.enqueue("page-signal", {})
        self.open(page, f"jobs/{job}")
        form = page.get_by_role("region", name="Signal approval")
        expect(form).to_contain_text("Waits for signal approval", timeout=20_000)
        expect(page.get_by_role("region", name="Why it waits")).to_contain_text("waits for signal approval")
        self.shot(page, "job-signal")
        data = form.get_by_label("What the phase gives, one JSON object")
        data.fill("nonsense")
        form.get_by_role("button", name="Send signal").click()
        expect(form.get_by_text("No JSON")).to_be_visible()
        data.fill('{"by": "me"}')
        form.get_by_role("button", name="Send signal").click()
        expect(page.locator(".page-head .badge")).to_have_text("succeeded", timeout=20_000)
        found = call(self.api, "GET", f"/v1/jobs/{job}")["invocations"][1]["result"]
        assert found == {"by": "me"}, found
        job = self.enqueue("page-signal", {})
        self.open(page, f"jobs/{job}")
        expect(form).to_contain_text("Waits for signal approval", timeout=20_000)
        form.get_by_label("Why it fails").fill("no")
        form.get_by_role("button", name="Fail the job").click()
        expect(page.locator(".page-head .badge")).to_have_text("dead", timeout=20_000)
        call(self.api, "DELETE", f"/v1/jobs/{job}")

    def pausing(self):
        page = self.page()
        self.open(page, "pipelines/page-graph")
        page.get_by_role("button", name="Pause", exact=True).first.click()
        expect(page.locator(".page-head .badge")).to_have_text("paused")
        job = self.enqueue("page-graph", {})
        self.open(page, f"jobs/{job}")
        expect(page.get_by_role("region", name="Why it waits")).to_contain_text("Its pipeline is paused")
        page.get_by_role("link", name="page-graph").first.click()
        page.get_by_role("button", name="Resume", exact=True).first.click()
        expect(page.locator(".page-head .badge")).to_have_count(0)
        until("it goes on", lambda: self.state(job) == "succeeded")
        page.get_by_role("button", name="Pause phase join").click()
        expect(page.get_by_role("button", name="Resume phase join")).to_be_visible()
        self.shot(page, "pipeline-paused-phase")
        job = self.enqueue("page-graph", {})
        self.open(page, f"jobs/{job}")
        expect(page.get_by_role("region", name="Why it waits")).to_contain_text("join is paused", timeout=20_000)
        self.open(page, "pipelines/page-graph")
        page.get_by_role("button", name="Resume phase join").click()
        until("it goes on", lambda: self.state(job) == "succeeded")

    def items_and_undoing(self):
        page = self.page()
        job = self.enqueue("page-items", {})
        self.open(page, f"jobs/{job}")
        table = page.get_by_role("table", name="Jobs of its items")
        expect(table.get_by_role("row")).to_have_count(21, timeout=20_000)
        page.get_by_role("link", name="Next page").click()
        expect(table.get_by_role("row")).to_have_count(11)
        page.go_back()
        expect(table.get_by_role("row")).to_have_count(21)
        expect(page.locator(".page-head .badge")).to_have_text("succeeded", timeout=30_000)
        self.shot(page, "job-items")
        table.get_by_role("link").first.click()
        expect(page.get_by_text("Part of", exact=True)).to_be_visible()
        expect(page.get_by_role("button", name="Discard…")).to_have_count(0)
        job = self.enqueue("page-undo", {"fail": True})
        self.open(page, f"jobs/{job}")
        expect(page.get_by_text("Undone by", exact=True)).to_be_visible(timeout=20_000)
        page.locator("dt", has_text="Undone by").locator("xpath=../dd/a").click()
        expect(page.get_by_text("Undoes", exact=True)).to_be_visible()
        expect(page.get_by_role("group", name="Phases of this job")).to_contain_text("refund")

    def definitions(self):
        page = self.page()
        self.open(page, "pipelines/page-signal")
        page.get_by_text("Document and revisions").click()
        expect(page.get_by_role("group", name=re.compile("^Definition "))).to_have_count(1)
        changed = json.loads(json.dumps(PIPELINES[2]))
        changed["phases"].append({"name": "more", "phase": W})
        job = self.enqueue("page-signal", {})
        call(self.api, "PUT", "/v1/pipelines/page-signal", changed)
        expect(page.get_by_role("group", name=re.compile("^Definition "))).to_have_count(2, timeout=20_000)
        self.shot(page, "pipeline")
        # A job is drawn by the definition that it began with.
        self.open(page, f"jobs/{job}")
        expect(page.get_by_role("region", name="Signal approval")).to_be_visible()
        assert "not known any more" not in page.inner_text("main")
        page.go_back()
        page.get_by_text("Document and revisions").click()
        page.get_by_role("button", name="Make current…").click()
        page.get_by_role("button", name="Make current", exact=True).click()
        until("it is as before", lambda: len(call(self.api, "GET", "/v1/pipelines/page-signal")["definition"]["phases"]) == 3)
        call(self.api, "POST", f"/v1/jobs/{job}/cancel", {})

    def links_and_keys(self):
        page = self.page()
        for at in range(60):
            self.enqueue("page-graph", {"n": at})
        self.open(page, "")
        page.keyboard.press("/")
        expect(page.locator("#search-text")).to_be_focused()
        page.keyboard.type("page-gr")
        page.keyboard.press("Enter")
        expect(page.locator("h1")).to_contain_text("page-graph")
        rows = page.get_by_role("table", name="Jobs of page-graph").get_by_role("row")
        expect(rows).to_have_count(51)
        first = rows.nth(1).get_by_role("link").inner_text()
        page.get_by_role("link", name="Next page").click()
        expect(rows.nth(1)).not_to_contain_text(first)
        page.reload()
        page.wait_for_selector("tbody tr")
        expect(rows.nth(1)).not_to_contain_text(first)
        assert "after=" in page.url
        page.go_back()
        expect(rows.nth(1)).to_contain_text(first)
        page.go_back()
        expect(page.locator("#nav [aria-current=page]")).to_have_text("Overview")
        page.go_forward()
        expect(rows.nth(1)).to_contain_text(first)
        page.keyboard.press("j")
        page.keyboard.press("j")
        page.keyboard.press("k")
        focused = page.evaluate("document.activeElement.textContent")
        page.keyboard.press("Enter")
        expect(page.locator("h1")).to_contain_text("Job")
        assert focused in page.url, (focused, page.url)
        page.locator("#search-text").fill("zzz")
        page.keyboard.press("Enter")
        expect(page.locator(".note.failed")).to_contain_text("Nothing to go to")
        self.open(page, "pipelines/page-unknown", "h1")
        expect(page.get_by_role("alert")).to_contain_text("Unknown pipeline")
        self.open(page, "nowhere", "h1")
        expect(page.locator("h1")).to_contain_text("no such page")
        page.goto(f"{self.url}#/jobs/%E0%A4%A")
        expect(page.locator("h1")).to_contain_text("no such page")
        page.goto(f"{self.url}#/")
        page.reload()
        page.wait_for_selector(".panel")
        page.keyboard.press("Tab")
        expect(page.locator("#skip")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("#main")).to_be_focused()

    def refresh_disturbs_nobody(self):
        page = self.page()
        self.open(page, "pipelines/page-graph")
        page.wait_for_selector("tbody tr")
        # Until nothing happens in the pipeline any more.
        expect(page.locator(".tile-value").first).to_have_text("0", timeout=60_000)
        page.evaluate("""() => {
            window.made = 0;
            new MutationObserver((all) => { for (const one of all) made += one.addedNodes.length; })
                .observe(document.getElementById('main'), { childList: true, subtree: true });
            getSelection().selectAllChildren(document.querySelector('h1'));
            scrollTo(0, 300);
        }""")
        page.wait_for_timeout(5000)
        made, chosen, scrolled = page.evaluate("[made, String(getSelection()), scrollY]")
        assert made <= 4, f"{made} elements were made anew although nothing has changed"
        assert "page-graph" in chosen, chosen
        assert scrolled > 200, scrolled

    def thousands(self):
        before = (self.counts("page-nobody") or {}).get("queued", 0)
        lines = b"".join(b'{"n": %d}\n' % at for at in range(2500))
        request = urllib.request.Request(f"{self.api}/v1/pipelines/page-nobody/jobs", lines, {"content-type": "application/x-ndjson"})
        with urllib.request.urlopen(request, timeout=60) as response:
            response.read()
        all_ = before + 2500
        until("all are counted", lambda: self.counts("page-nobody")["queued"] == all_)
        page = self.page()
        self.open(page, "pipelines/page-nobody?state=queued")
        cancel = page.get_by_role("button", name=re.compile("^Cancel .*…"))
        expect(cancel).to_have_text(f"Cancel {all_ // 1000}\u202f{all_ % 1000}…", timeout=20_000)
        cancel.click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("queued jobs will be cancelled. This cannot be undone")
        dialog.get_by_role("button", name=re.compile("^Cancel ")).click()
        expect(page.locator(".note", has_text="jobs cancelled")).to_contain_text(f"{all_ // 1000}\u202f{all_ % 1000}", timeout=60_000)
        until("none waits", lambda: self.counts("page-nobody")["queued"] == 0)
        expect(page.get_by_text("No job is queued.")).to_be_visible(timeout=20_000)

    def looks(self, scheme, size, name):
        failing = self.enqueue("page-fail", {"fail": True})
        waiting = self.enqueue("page-signal", {})
        job = self.enqueue("page-graph", {"right": True, "text": "word " * 60, "list": list(range(100))})
        until("it has ended", lambda: self.state(job) == "succeeded" and self.state(failing) == "dead")
        page = self.page(scheme, size)
        ground = {"dark": "rgb(14, 19, 24)", "light": "rgb(245, 246, 248)"}[scheme]
        for view in ["", "pipelines/page-graph", "pipelines/page-signal", f"jobs/{job}", f"jobs/{failing}", f"jobs/{waiting}", "dead", "nodes", "handlers", "pipelines/page-cron"]:
            self.open(page, view)
            page.wait_for_timeout(700)
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
            label = {f"jobs/{job}": "job", f"jobs/{failing}": "job-dead", f"jobs/{waiting}": "job-signal"}.get(view, view.replace("/", "-") or "overview")
            self.shot(page, f"{name}-{label}")
        self.open(page, "pipelines/page-graph")
        page.get_by_role("button", name="Enqueue…").click()
        self.shot(page, f"{name}-enqueue")
        call(self.api, "POST", f"/v1/jobs/{waiting}/cancel", {})
        call(self.api, "DELETE", f"/v1/jobs/{failing}")

    def node_that_dies(self):
        page = self.page()
        self.open(page, "")
        self.expects_failure = True
        self.cluster.kill(0)
        expect(page.locator("#banner")).to_contain_text("The node does not answer", timeout=20_000)
        expect(page.locator("#banner")).to_contain_text(re.compile("Next try in|Asking"))
        # What was known stays to be seen.
        expect(page.get_by_role("table", name="Pipelines")).to_be_visible()
        self.shot(page, "node-lost")
        self.cluster.start(0)
        expect(page.locator("#banner .banner")).to_have_count(0, timeout=60_000)
        expect(page.get_by_role("table", name="Nodes", exact=True).get_by_text("alive", exact=True)).to_have_count(3, timeout=30_000)
        self.expects_failure = False
        self.cluster.kill(2)
        expect(page.get_by_role("list", name="Warnings")).to_contain_text("cannot be reached", timeout=20_000)
        self.shot(page, "node-down")
        self.cluster.start(2)
        expect(page.get_by_role("table", name="Nodes", exact=True).get_by_text("alive", exact=True)).to_have_count(3, timeout=30_000)

    def hidden_page_rests(self):
        page = self.page()
        self.open(page, "")
        page.evaluate("""() => {
            Object.defineProperty(document, 'hidden', { configurable: true, get: () => window.away });
            window.away = true;
            document.dispatchEvent(new Event('visibilitychange'));
        }""")
        page.wait_for_timeout(1000)
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.wait_for_timeout(4500)
        assert not asked, f"it asks while it is hidden: {asked}"
        page.evaluate("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
        page.wait_for_timeout(1000)
        assert asked, "it does not ask once it is seen again"

    def run_quick(self):
        """About a minute: what is made for the page alone, and what must never break."""
        self.check("a form is made of an input schema", self.form_of_schema)
        self.check("the map tells who is connected and who coordinates", self.map_of_nodes)
        self.check("what waits and runs is counted at each phase", self.counts_at_phases)
        self.check("schedules tell their last and next runs", self.schedules)
        self.check("handlers are listed, and their sources shown", self.handlers)
        self.check("logs are shown as they come", self.logs)
        self.check("dead letters are retried and discarded", self.dead_letters)
        self.check("signals are sent", self.signals)
        self.check("a phone's width, dark", self.looks, "dark", (390, 844), "phone-dark")
        for name, act in hostile.CHECKS[:2]:
            self.check(name, act, self)

    def run(self):
        if self.arguments.quick:
            self.run_quick()
            return
        self.check("the overview shows nodes, pipelines, rates and warnings", self.overview)
        self.check("the last hour and day are drawn, and said in words", self.history)
        self.check("a job is enqueued by the form", self.enqueue_by_form)
        self.check("a form is made of an input schema", self.form_of_schema)
        self.check("the map tells who is connected and who coordinates", self.map_of_nodes)
        self.check("what waits and runs is counted at each phase", self.counts_at_phases)
        self.check("schedules tell their last and next runs", self.schedules)
        self.check("handlers are listed, and their sources shown", self.handlers)
        self.check("logs are shown as they come", self.logs)
        self.check("a job is followed to its end", self.job_is_followed)
        self.check("it is said why a job waits; a job is cancelled", self.waiting_is_explained)
        self.check("dead letters are retried and discarded", self.dead_letters)
        self.check("signals are sent", self.signals)
        self.check("a pipeline and a phase are paused and resumed", self.pausing)
        self.check("items and what undoes are linked", self.items_and_undoing)
        self.check("definitions are shown and taken up again", self.definitions)
        self.check("thousands of jobs are cancelled at once", self.thousands)
        self.check("links, the back button, search and keys work", self.links_and_keys)
        self.check("a refresh disturbs nobody", self.refresh_disturbs_nobody)
        self.check("a hidden page rests", self.hidden_page_rests)
        self.check("light", self.looks, "light", (1400, 900), "light")
        self.check("dark", self.looks, "dark", (1400, 900), "dark")
        self.check("a phone's width", self.looks, "light", (390, 844), "phone")
        self.check("a phone's width, dark", self.looks, "dark", (390, 844), "phone-dark")
        for name, act in hostile.CHECKS:
            self.check(name, act, self)
        if self.cluster:
            self.check("a node that dies is noticed, and its return", self.node_that_dies)
            self.check("a node is drained", self.draining)
        else:
            print("not run a node that dies: give --program")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--api", default=os.environ.get("CARBONMESH_API"), help="a node that serves the page")
    parser.add_argument("--program", help="start a cluster of this program instead")
    parser.add_argument("--files", help="take the page from this folder, not from the program")
    parser.add_argument("--out", help="where to put pictures")
    parser.add_argument("--axe", help="axe.min.js of axe-core")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser")
    parser.add_argument("--quick", action="store_true", help="leave out what takes long: about a minute in all")
    parser.add_argument("--only", help="only checks whose names have this in them")
    parser.add_argument("--print-config", action="store_true", help="print what nodes have to offer")
    arguments = parser.parse_args()
    if arguments.print_config:
        print(CONFIG)
        return 0
    if not arguments.program and not arguments.api:
        parser.error("give --program or --api")
    with contextlib.ExitStack() as stack:
        cluster, api = None, (arguments.api or "").rstrip("/")
        if arguments.program:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="carbonmesh-page-"))
            cluster = Cluster(arguments.program, folder)
            stack.callback(cluster.stop)
            api = f"http://127.0.0.1:{cluster.http[0]}"
            until("three nodes have met", lambda: call(api, "GET", "/v1/status")["members"]["alive"] == 3, 60)
        page_url = f"{api}/"
        if arguments.files:
            [port] = free_ports(1)
            server = serve.server(port, api.removeprefix("http://"), pathlib.Path(arguments.files))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            page_url = f"http://127.0.0.1:{port}/"
        for one in PIPELINES:
            call(api, "PUT", f"/v1/pipelines/{one['name']}", one)
        for one in PIPELINES:
            until(f"{one['name']} has a coordinator", lambda: call(api, "GET", f"/v1/pipelines/{one['name']}")["coordinator"])
        playwright = stack.enter_context(sync_playwright())
        options = {"executable_path": arguments.chromium} if arguments.chromium else {}
        browser = playwright.chromium.launch(args=["--no-sandbox"] if os.geteuid() == 0 else [], **options)
        stack.callback(browser.close)
        checks = Checks(browser, arguments, api, page_url, cluster)
        if arguments.only:
            inner = checks.check
            checks.check = lambda name, *rest: inner(name, *rest) if arguments.only in name else None
        checks.run()
        if arguments.axe:
            print(f"axe-core looked at {len(checks.axe)} views")
        else:
            print("axe-core was not run: give --axe")
        if checks.failures:
            print(f"{len(checks.failures)} checks failed: {'; '.join(checks.failures)}")
            return 1
        print("all checks passed")
        return 0


if __name__ == "__main__":
    sys.exit(main())
