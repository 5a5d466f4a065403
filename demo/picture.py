"""Records `socktrace run` and draws what it printed, as SVG: the picture in README.md.

    make picture        writes docs/picture.svg

The panel brings its own background, so that it reads the same on a light page and on a dark one.
"""

import html
import os
import pathlib
import re
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
SOCKET = pathlib.Path("/tmp/hello.sock")
# curl looks for nscd as well; a filter leaves that out.
SHOWN = f"socktrace run --path {SOCKET} -- curl -s --unix-socket {SOCKET} http://localhost/hello"
PATIENCE = 10  # seconds for the server to listen

CHAR, LINE, MARGIN = 7.8, 19, 18  # pixels: a character's width and a line's height at this font size, the edge
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"
BACKGROUND, EDGE, TEXT = "#0d1117", "#3d444d", "#e6edf3"
# What the codes of SGR (console_codes(4)) that socktrace uses look like.
STYLES = {
    "1": 'font-weight="bold"',
    "2": 'fill="#8b949e"',
    "31": 'fill="#ff7b72"',
    "32": 'fill="#7ee787"',
    "34": 'fill="#79c0ff"',
    "36": 'fill="#76e3ea"',
}


def record():
    """What a terminal shows: the command, and all that it printed, with its colours."""
    server = subprocess.Popen([sys.executable, HERE / "hello.py", "serve", SOCKET])
    try:
        deadline = time.monotonic() + PATIENCE
        while not SOCKET.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"picture: the server does not listen at {SOCKET}")
            time.sleep(0.05)
        words = SHOWN.split()
        command = [os.environ["SOCKTRACE"], "run", "--color", "always", "--time", "relative", *words[2:]]
        environment = dict(os.environ, LANG="C.UTF-8", LC_ALL="C.UTF-8")
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        if run.returncode != 0:
            sys.exit(f"picture: {SHOWN}: {run.stdout}")
    finally:
        server.terminate()
        server.wait()
    return f"\x1b[1m$ {SHOWN}\x1b[0m\n{run.stdout}"


def spans(line):
    """A line's pieces, each with the place where it begins and how it looks."""
    style, at, pieces = [], 0, []
    for text in re.split(r"(\x1b\[[0-9;]*m)", line):
        code = re.fullmatch(r"\x1b\[([0-9;]*)m", text)
        if code:
            for part in code[1].split(";"):
                style = [] if part in ("", "0") else [*style, STYLES[part]]
        elif text:
            pieces.append((at, " ".join(style), text))
            at += len(text)
    return pieces


def draw(recorded):
    lines = [spans(line) for line in recorded.splitlines()]
    columns = max(at + len(text) for line in lines for at, _, text in line)
    width, height = round(columns * CHAR + 2 * MARGIN), len(lines) * LINE + 2 * MARGIN
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{html.escape(SHOWN)}">',
        f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8" fill="{BACKGROUND}" stroke="{EDGE}"/>',
        f'<g font-family="{FONT}" font-size="13" fill="{TEXT}">',
    ]
    for number, line in enumerate(lines):
        for at, style, text in line:
            # SVG makes one space of several, so that columns are drawn one by one.
            for column in re.finditer(r"\S+(?: \S+)*", text):
                x, y, shown = MARGIN + (at + column.start()) * CHAR, MARGIN + number * LINE + 14, column[0]
                size = f'textLength="{len(shown) * CHAR:.1f}" lengthAdjust="spacingAndGlyphs"'
                svg.append(f'<text x="{x:.1f}" y="{y}" {size} {style}>{html.escape(shown, quote=False)}</text>')
    return "\n".join([*svg, "</g>", "</svg>", ""])


if __name__ == "__main__":
    pathlib.Path(sys.argv[1]).write_text(draw(record()))
