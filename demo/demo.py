"""Traces a real server while a real client talks to it over a UNIX socket, and prints what they said.

Run by `make demo`: redis where it is installed, else an HTTP server of Python's own with curl or Python as its client.
"""

import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

PATIENCE = 30  # seconds for any one step; a slow machine needs some, a broken one should not hang


def fail(message):
    sys.exit(f"demo: {message}")


def wait_for(what, condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            fail(f"waited {PATIENCE} s in vain for {what}")
        time.sleep(0.05)


HTTP_SERVER = """
import http.server, socketserver, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"hello over AF_UNIX\\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
    def address_string(self): return "unix"
socketserver.UnixStreamServer(sys.argv[1], Handler).serve_forever()
"""


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def start_program(path):
    """Starts the server program to be traced; gives it, and what its client does."""
    if shutil.which("redis-server") and shutil.which("redis-cli"):
        command = ["redis-server", "--port", "0", "--unixsocket", path, "--save", ""]
        commands = [["PING"], ["SET", "greeting", "hello over AF_UNIX"], ["GET", "greeting"]]

        def talk():
            for words in commands:
                subprocess.run(["redis-cli", "-s", path, *words], check=True, stdout=subprocess.DEVNULL)

        return command, talk
    command = [sys.executable, "-c", HTTP_SERVER, path]
    if shutil.which("curl"):
        return command, lambda: subprocess.run(
            ["curl", "-s", "--unix-socket", path, "http://localhost/"], check=True, stdout=subprocess.DEVNULL
        )

    def talk():
        connection = UnixConnection(path)
        connection.request("GET", "/")
        connection.getresponse().read()
        connection.close()

    return command, talk


def events(out):
    lines = (out / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def print_conversation(out, name):
    read = {}
    for event in events(out):
        kind = event["type"]
        if kind in ("open", "close"):
            print(f"{kind:5} {event.get('path', '')}  {event['how']}  ({event['conn_id']})")
        elif kind == "data":
            arrow = {"in": "->", "out": "<-"}[event["direction"]]
            key = (event["conn_id"], event["direction"])
            file = out / f"{event['conn_id']}.{event['direction']}.bin"
            start = read.get(key, 0)
            read[key] = start + event["size"]
            text = file.read_bytes()[start : read[key]].decode("utf-8", "backslashreplace")
            print(f"  {arrow} {name}[{event['pid']}] {event['call']} {event['size']} bytes: {text!r}")
        elif kind in ("lost", "error", "bad_frame"):
            print(f"{kind}: {event}")


def stop(process):
    process.send_signal(signal.SIGTERM)
    process.wait(PATIENCE)


def main():
    with tempfile.TemporaryDirectory(prefix="socktrace-demo-") as folder:
        folder = pathlib.Path(folder)
        path, sock, out = folder / "program.sock", folder / "socktrace.sock", folder / "out"
        command, talk = start_program(str(path))
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
        server = subprocess.Popen([os.environ["SOCKTRACE_SERVER"], sock, out], **quiet)
        program = subprocess.Popen(command, **quiet)
        try:
            wait_for("socktrace-server", sock.exists)
            wait_for(command[0], path.exists)
            print(f"$ socktrace-server {sock} {out} &")
            print(f"$ {os.path.basename(command[0])} … &   # pid {program.pid}")
            parameters = json.dumps({"out_socket_path": str(sock)})
            print(f"$ frida -p {program.pid} -l agent.js -P '{parameters}' -q --eternalize")
            frida = [os.environ["SOCKTRACE_FRIDA"], "-p", str(program.pid), "-l", os.environ["SOCKTRACE_AGENT"]]
            frida += ["-P", parameters, "-q", "--eternalize"]
            loaded = subprocess.run(frida, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)
            if loaded.returncode != 0 or not any(event["type"] == "ready" for event in events(out)):
                wait_for(
                    "the agent; frida said: " + (loaded.stdout + loaded.stderr).strip(),
                    lambda: any(event["type"] == "ready" for event in events(out)),
                )
            talk()
            wait_for("the recording", lambda: sum(event["type"] == "close" for event in events(out)) > 0)
        finally:
            stop(program)
            stop(server)
        print(f"\nWhat {os.path.basename(command[0])} heard (->) and said (<-):\n")
        print_conversation(out, os.path.basename(command[0]))


if __name__ == "__main__":
    main()
