"""Runs the examples of every script's ``--help`` on the demo run: python .ci/examples.py FOLDER, which has runs/demo.

Examples on the post's run, which take an hour, and on a GPU are left out; every script must have one that is not.
"""

import ast
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
EXAMPLE = re.compile(r"^ *python experiments/(\S+\.py)(.*?)(?:\s+#.*)?$", re.MULTILINE)
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")  # in the text of a script that is a server


def examples(script: Path) -> list[list[str]]:
    """The commands in a script's docstring that run on the demo run, or on none."""
    lines = EXAMPLE.findall(ast.get_docstring(ast.parse(script.read_text())) or "")
    long = ("post", "modern", "results", "cuda")
    return [[name, *shlex.split(rest)] for name, rest in lines if not any(word in rest for word in long)]


def run(command: list[str], address: re.Match[str] | None) -> None:
    """Runs a command to its end; one that answers at an address until it has answered there."""
    if address is None or "--export" in command:
        subprocess.run(command, cwd=sys.argv[1], check=True)
        return
    with subprocess.Popen(command, cwd=sys.argv[1]) as server:
        while server.poll() is None:
            try:
                with urllib.request.urlopen(address[0], timeout=60) as answer:
                    assert answer.status == 200 and b"</html>" in answer.read()
                break
            except urllib.error.URLError:  # not yet
                time.sleep(0.5)
        server.send_signal(signal.SIGINT)
    if server.returncode not in (0, 130):
        sys.exit(f"{shlex.join(command)} ended with status {server.returncode}")


def main() -> None:
    scripts = [path for path in sorted(EXPERIMENTS.glob("*.py")) if "__main__" in path.read_text()]
    for script in scripts:
        commands = examples(script)
        if not commands:
            sys.exit(f"{script.name} has no example that runs on the demo run")
        for name, *arguments in commands:
            began = time.monotonic()
            run([sys.executable, str(EXPERIMENTS / name), *arguments], ADDRESS.search(script.read_text()))
            print(f"-- {name} {shlex.join(arguments)}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
