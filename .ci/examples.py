"""Runs the examples of every script's ``--help`` on the demo run: python .ci/examples.py FOLDER, which has runs/demo.

Examples on the post's run, which take an hour, and on a GPU are left out; every script must have one that is not.
"""

import ast
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
EXAMPLE = re.compile(r"^ *python experiments/(\S+\.py)(.*?)(?:\s+#.*)?$", re.MULTILINE)


def examples(script: Path) -> list[list[str]]:
    """The commands in a script's docstring that run on the demo run, or on none."""
    lines = EXAMPLE.findall(ast.get_docstring(ast.parse(script.read_text())) or "")
    long = ("post", "modern", "results", "cuda")
    return [[name, *shlex.split(rest)] for name, rest in lines if not any(word in rest for word in long)]


def main() -> None:
    scripts = [path for path in sorted(EXPERIMENTS.glob("*.py")) if "__main__" in path.read_text()]
    for script in scripts:
        commands = examples(script)
        if not commands:
            sys.exit(f"{script.name} has no example that runs on the demo run")
        for name, *arguments in commands:
            began = time.monotonic()
            subprocess.run([sys.executable, str(EXPERIMENTS / name), *arguments], cwd=sys.argv[1], check=True)
            print(f"-- {name} {shlex.join(arguments)}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
