"""A web server on a UNIX socket and its client, for something to trace where no other program is at hand.

    python3 hello.py              both, once, on a socket that goes away again
    python3 hello.py serve PATH   the server, until it is stopped
    python3 hello.py ask PATH     the client, once
"""

import http.client
import http.server
import os
import signal
import socket
import socketserver
import sys
import tempfile


class Handler(http.server.BaseHTTPRequestHandler):
    wbufsize = -1  # a whole answer is one message

    def do_GET(self):
        body = b"hello over a UNIX socket\n"
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Says nothing: what is to be seen is the trace."""


class Connection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def ask(path):
    connection = Connection(path)
    connection.request("GET", "/hello")
    print(connection.getresponse().read().decode(), end="", flush=True)
    connection.close()


def both():
    path = os.path.join(tempfile.gettempdir(), f"hello-{os.getpid()}.sock")
    ready, announce = os.pipe()
    child = os.fork()
    if child == 0:
        server = socketserver.UnixStreamServer(path, Handler)
        os.close(announce)
        server.handle_request()
        os.unlink(path)
        os._exit(0)
    os.close(announce)
    os.read(ready, 1)  # ends when the server listens, and when it could not
    ask(path)
    os.waitpid(child, 0)


def serve(path):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        socketserver.UnixStreamServer(path, Handler).serve_forever()
    finally:
        os.unlink(path)


def main():
    words = sys.argv[1:]
    if not words:
        both()
    elif len(words) == 2 and words[0] in ("serve", "ask"):
        {"serve": serve, "ask": ask}[words[0]](words[1])
    else:
        sys.exit(__doc__.strip())


if __name__ == "__main__":
    main()
