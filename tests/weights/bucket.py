"""A local HTTP server that stands for the bucket of released weights, with its possible bad days."""

import http.server
import threading


class Bucket(http.server.ThreadingHTTPServer):
    """Serves `files`; `requests` records (path, Range). `cuts` are bytes after which to hang up, request by request."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests, self.cuts, self.ranges = {}, [], [], True
        self.open = threading.Event()
        self.open.set()
        self.asked = threading.Event()

    def handle_error(self, request, client_address):
        """A client that left is no news."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        bucket = self.server
        bucket.requests.append((self.path, self.headers.get("Range")))
        bucket.asked.set()
        bucket.open.wait(60)
        body = bucket.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        start = 0
        if bucket.ranges and (wanted := self.headers.get("Range")):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        stop = bucket.cuts.pop(0) if bucket.cuts else len(body)
        self.wfile.write(body[start : start + stop])

    def log_message(self, *args):
        """Quiet."""
