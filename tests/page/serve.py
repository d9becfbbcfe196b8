"""Serves the page from its folder, and passes `/v1` on to a node: for work on the page."""

import http.client
import http.server
import pathlib
import sys

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "node/src/http/page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
# As the node sends them.
HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
STREAMS = ("application/x-ndjson", "text/event-stream")
PASSED_ON = ("content-type", "location", "retry-after")


def server(port, node, folder=FOLDER):
    """A server at `port` of loopback, before the node at `node` (HOST:PORT)."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self):
            path = self.path.split("?")[0]
            if path.startswith("/v1") or path == "/healthz":
                self.pass_on()
                return
            name = "index.html" if path == "/" else path.removeprefix("/page/")
            file = folder / name
            if "/" in name or not file.is_file():
                self.reply(404, {"content-type": "text/plain"}, b"no such file")
                return
            self.reply(200, {**HEADERS, "content-type": TYPES[file.suffix]}, file.read_bytes())

        def pass_on(self):
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            # Not packed: what is passed back says nothing of that.
            left_out = ("connection", "accept-encoding")
            headers = {name: value for name, value in self.headers.items() if name.lower() not in left_out}
            try:
                connection = http.client.HTTPConnection(node, timeout=90)
                connection.request(self.command, self.path, body, headers)
                response = connection.getresponse()
                if response.getheader("content-type") in STREAMS:
                    self.stream(response)
                    connection.close()
                    return
                data = response.read()
                connection.close()
            except OSError:
                # As if nobody listened here either.
                self.close_connection = True
                self.connection.close()
                return
            found = {name: value for name, value in response.getheaders() if name.lower() in PASSED_ON}
            self.reply(response.status, found, data)

        def stream(self, response):
            """An answer that does not end: what comes is passed on as it comes."""
            self.send_response(response.status)
            self.send_header("content-type", response.getheader("content-type"))
            self.send_header("connection", "close")
            self.end_headers()
            self.close_connection = True
            while chunk := response.read1():
                self.wfile.write(chunk)
                self.wfile.flush()

        def reply(self, status, headers, body):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if status != 204:
                self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):
            pass

    return Server(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: serve.py PORT NODE:PORT")
    print(f"http://127.0.0.1:{sys.argv[1]}/")
    server(int(sys.argv[1]), sys.argv[2]).serve_forever()
