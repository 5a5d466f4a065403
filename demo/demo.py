"""Traces real programs that talk over a UNIX socket, by both ways there are, and prints what they said.

Run by `make demo`: first `socktrace run` shows a client, then the server has Frida's agent in it and socktrace-server
records. The programs are redis where it is installed, else hello.py beside this file, with curl or itself as its client.
"""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

PATIENCE = 30  # seconds for any one step; a slow machine needs some, a broken one should not hang
HELLO = str(pathlib.Path(__file__).with_name("hello.py"))
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}


def fail(message):
    sys.exit(f"demo: {message}")


def wait_for(what, condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            fail(f"waited {PATIENCE} s in vain for {what}")
        time.sleep(0.05)


def programs(path):
    """The server's command, and those of its clients."""
    if shutil.which("redis-server") and shutil.which("redis-cli"):
        server = ["redis-server", "--port", "0", "--unixsocket", path, "--save", ""]
        commands = [["SET", "greeting", "hello over AF_UNIX"], ["GET", "greeting"], ["PING"]]
        return server, [["redis-cli", "-s", path, *words] for words in commands]
    server = [sys.executable, HELLO, "serve", path]
    if shutil.which("curl"):
        return server, [["curl", "-s", "--unix-socket", path, "http://localhost/hello"]]
    return server, [[sys.executable, HELLO, "ask", path]]


def show_run(client, path):
    """What a person does first: a program, traced from its start."""
    print(f"$ socktrace run --path {path} -- {shlex.join(client)}", flush=True)
    run = [os.environ["SOCKTRACE"], "run", "--path", path, "--", *client]
    traced = subprocess.run(run, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, timeout=PATIENCE)
    if traced.returncode != 0:
        fail("socktrace run failed")


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


def load_agent(pid, sock, is_ready):
    parameters = json.dumps({"out_socket_path": str(sock)})
    print(f"$ frida -p {pid} -l agent.js -P '{parameters}' -q --eternalize")
    frida = [os.environ["SOCKTRACE_FRIDA"], "-p", str(pid), "-l", os.environ["SOCKTRACE_AGENT"]]
    frida += ["-P", parameters, "-q", "--eternalize"]
    loaded = subprocess.run(frida, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)
    if loaded.returncode != 0 or not is_ready():
        wait_for("the agent; frida said: " + (loaded.stdout + loaded.stderr).strip(), is_ready)


def main():
    with tempfile.TemporaryDirectory(prefix="socktrace-demo-") as folder:
        folder = pathlib.Path(folder)
        path, sock, out = str(folder / "program.sock"), folder / "socktrace.sock", folder / "out"
        command, clients = programs(path)
        name = os.path.basename(command[0])
        program = subprocess.Popen(command, **QUIET)
        server = None
        try:
            wait_for(name, lambda: os.path.exists(path))
            print("A client, by socktrace run:\n")
            show_run(clients[0], path)

            print("\nThe server, which runs already, by Frida's agent and socktrace-server:\n")
            print(f"$ socktrace-server {sock} {out} &")
            server = subprocess.Popen([os.environ["SOCKTRACE_SERVER"], sock, out], **QUIET)
            wait_for("socktrace-server", sock.exists)
            load_agent(program.pid, sock, lambda: any(event["type"] == "ready" for event in events(out)))
            for client in clients:
                print(f"$ {shlex.join(client)}")
                subprocess.run(client, check=True, stdout=subprocess.DEVNULL)
            wait_for("the recording", lambda: any(event["type"] == "close" for event in events(out)))
        finally:
            stop(program)
            if server is not None:
                stop(server)
        print(f"\nWhat {name} heard (->) and said (<-):\n")
        print_conversation(out, name)


if __name__ == "__main__":
    main()
