"""An HTTP server on a UNIX socket, of Python's own parts: GET gives the file, POST gives back what it got."""

import http.server
import socketserver
import sys

socket_path, file = sys.argv[1:]


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        with open(file, "rb") as content:
            self.answer(content.read())

    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))

    def address_string(self):
        return "client"


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


Server(socket_path, Handler).serve_forever()
