"""Downloads a page, and takes its text and its links, beside each other.

    carbonmesh bundle links.py
    carbonmesh enqueue links '{"url": "http://127.0.0.1:8000/index.html"}' --wait
"""

import urllib.error
import urllib.request
from html.parser import HTMLParser
from urllib.parse import urljoin

from carbonmesh import Fatal, Phase, Pipeline

MOST_BYTES = 1 << 20


class Download(Phase):
    job_type = "download"

    def execute(self, instructions):
        url = instructions["url"]
        if not url.startswith(("http://", "https://")):
            raise Fatal("%s is no address of a page" % url)
        try:
            # Anything else that goes wrong here may go better later.
            with urllib.request.urlopen(url, timeout=30) as answer:
                body = answer.read(MOST_BYTES)
        except urllib.error.HTTPError as error:
            if 400 <= error.code < 500:
                raise Fatal("%s: %s" % (url, error)) from error
            raise
        self.logger.info("%s has %d bytes", url, len(body))
        return {"html": body.decode("utf-8", "replace")}


class Reader(HTMLParser):
    def __init__(self, base):
        super().__init__()
        self.base, self.words, self.links, self.hidden = base, [], [], 0

    def handle_starttag(self, tag, attributes):
        self.hidden += tag in ("script", "style")
        target = dict(attributes).get("href")
        if tag == "a" and target:
            self.links.append(urljoin(self.base, target))

    def handle_endtag(self, tag):
        self.hidden -= tag in ("script", "style")

    def handle_data(self, data):
        if not self.hidden:
            self.words.extend(data.split())


def read(instructions):
    reader = Reader(instructions["url"])
    reader.feed(instructions["html"])
    return reader


class GetText(Phase):
    job_type = "get-text"

    def execute(self, instructions):
        return {"text": " ".join(read(instructions).words)}


class GetLinks(Phase):
    job_type = "get-links"

    def execute(self, instructions):
        return {"links": read(instructions).links}


class Report(Phase):
    job_type = "report"

    def execute(self, instructions):
        return {"words": len(instructions["text"].split()), "found": len(instructions["links"])}


class Links(Pipeline):
    name = "links"
    phases = [
        Download,
        {"name": "get-text", "after": ["download"]},
        {"name": "get-links", "after": ["download"]},
        {"name": "report", "after": ["get-text", "get-links"]},
    ]
