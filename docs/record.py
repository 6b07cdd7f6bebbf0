#!/usr/bin/env python3
"""Records the terminal view of `cargo xtask demo` as an animated SVG: the README's picture.

    python3 docs/record.py docs/demo.svg

Takes tmux. What is drawn is what the terminal showed, once a second.
"""

import re
import subprocess
import sys
import time
import unicodedata
from html import escape

WIDTH, HEIGHT, SECONDS = 104, 20, 36
CELL_W, CELL_H = 7.83, 17
FOREGROUND, BACKGROUND = "#c0caf5", "#1a1b26"
BAR = "▏▎▍▌▋▊▉█"
BASIC = ["#2e3436", "#f7768e", "#9ece6a", "#e0af68", "#7aa2f7", "#bb9af7", "#7dcfff", "#c0caf5"]


def tmux(*args):
    return subprocess.run(["tmux", "-L", "record", *args], capture_output=True, text=True).stdout


def record():
    tmux("new-session", "-d", "-s", "demo", "-x", str(WIDTH), "-y", str(HEIGHT), "cargo xtask demo")
    try:
        while " presence " not in tmux("capture-pane", "-p", "-t", "demo"):
            time.sleep(0.2)
        frames, begin = [], time.monotonic()
        for second in range(SECONDS):
            time.sleep(max(0, begin + second - time.monotonic()))
            frames.append(tmux("capture-pane", "-p", "-e", "-t", "demo").split("\n")[:HEIGHT])
        return frames
    finally:
        tmux("send-keys", "-t", "demo", "q")
        time.sleep(3)
        tmux("kill-server")


def color(number):
    if number < 16:
        return BASIC[number % 8]
    if number >= 232:
        return "#" + f"{8 + 10 * (number - 232):02x}" * 3
    number -= 16
    return "#" + "".join(f"{[0, 95, 135, 175, 215, 255][n]:02x}" for n in (number // 36, number // 6 % 6, number % 6))


def set_style(style, codes):
    codes = [int(code or 0) for code in codes.split(";")]
    while codes:
        code = codes.pop(0)
        if code == 0:
            style.clear()
        elif code in (1, 2, 7):
            style[{1: "bold", 2: "dim", 7: "reversed"}[code]] = True
        elif code == 22:
            style.pop("bold", None), style.pop("dim", None)
        elif code == 27:
            style.pop("reversed", None)
        elif 30 <= code <= 37:
            style["color"] = color(code - 30)
        elif code == 38 and codes[0] == 5:
            style["color"] = color(codes[1])
            del codes[:2]
        elif code == 39:
            style.pop("color", None)


def pieces(line, y):
    """A line as pieces of SVG: one for each style, and for each character that has a width of its own."""
    column, style = 0, {}
    for text in re.split(r"(\x1b\[[\d;]*m)", line):
        if text.startswith("\x1b"):
            set_style(style, text[2:-1])
            continue
        for piece in re.findall(r"\s+|[♥♡●✗†]|·+|[\u3000-\U0010ffff]|(?:[^♥♡●✗†·\s\u3000-\U0010ffff]| (?! ))+", text):
            at = column + len(piece) - len(piece.lstrip())
            column += sum(2 if unicodedata.east_asian_width(c) == "W" else 1 for c in piece)
            if not piece.strip():
                continue
            yield svg_piece(piece.strip(), f"{10 + at * CELL_W:.0f}", y, style)


def svg_piece(text, x, y, style):
    color = style.get("color", FOREGROUND)
    if set(text) <= set(BAR):
        cells = sum((BAR.index(c) + 1) / 8 for c in text)
        return f'<rect x="{x}" y="{y + 4}" width="{cells * CELL_W:.0f}" height="10" fill="{color}"/>'
    classes = "".join(name[0] for name in ("bold", "dim", "reversed") if style.get(name))
    css = f' class="{" ".join(classes)}"' if classes else ""
    fill = f' fill="{color}"' if "color" in style else ""
    width = f"{len(text) * CELL_W:.0f}"
    # Whatever font there is, the columns are kept.
    fit = f' textLength="{width}"' if len(text) > 4 else ""
    behind = ""
    if style.get("reversed"):
        behind = f'<rect x="{x}" y="{y + 1}" width="{width}" height="{CELL_H - 1}" fill="{FOREGROUND}"/>'
    return f'{behind}<text x="{x}" y="{y + 13}"{fit}{fill}{css}>{escape(text)}</text>'


def svg(frames):
    seen = {}
    for at, frame in enumerate(frames):
        for number, line in enumerate(frame):
            for piece in pieces(line, 10 + number * CELL_H):
                seen.setdefault(piece, set()).add(at)
    groups = {}
    for piece, times in seen.items():
        groups.setdefault(frozenset(times), []).append(piece)
    out = []
    for times, drawn in groups.items():
        animate, hidden = "", ""
        if len(times) < len(frames):
            shown = [at in times for at in range(len(frames))]
            changes = [at for at in range(len(frames)) if at == 0 or shown[at] != shown[at - 1]]
            values = ";".join("visible" if shown[at] else "hidden" for at in changes)
            keys = ";".join(f"{at / len(frames):.3g}" for at in changes)
            animate = f'<animate attributeName="visibility" calcMode="discrete" dur="{len(frames)}s" repeatCount="indefinite" values="{values}" keyTimes="{keys}"/>'
            # Where nothing is animated, the last picture stands.
            hidden = "" if shown[-1] else ' visibility="hidden"'
        out.append(f"<g{hidden}>{''.join(drawn)}{animate}</g>")
    width, height = WIDTH * CELL_W + 20, HEIGHT * CELL_H + 20
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace" font-size="13" fill="{FOREGROUND}">
<style>.b{{font-weight:bold}}.d{{opacity:.6}}.r{{fill:{BACKGROUND}}}</style>
<rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/>
{chr(10).join(out)}
</svg>
"""


if __name__ == "__main__":
    pictures = record()
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        file.write(svg(pictures))
    print(re.sub(r"\x1b\[[\d;]*m", "", "\n".join(pictures[int(sys.argv[2]) if len(sys.argv) > 2 else -1])))
