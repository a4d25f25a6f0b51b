"""The library works without the packages of the extra ``explore``; they are named where they are wanted."""

import subprocess
import sys

HIDDEN = "import sys; sys.modules['starlette'] = sys.modules['uvicorn'] = None; "


def ran(code):
    return subprocess.run([sys.executable, "-c", HIDDEN + code], capture_output=True, text=True, timeout=60)


def test_pages_need_no_server_and_a_server_asks_for_the_extra():
    asked = """
from devinterp_func import show
show.explorer.make, show.explorer.html
for ask in (lambda: show.explorer.app, lambda: show.explorer.serve, lambda: show.explore):
    try:
        ask()
    except ImportError as error:
        print(error)
"""
    needs = 'pages are served by Starlette and uvicorn; pip install "devinterp_func[explore]"'
    found = ran(asked)
    assert (found.returncode, found.stdout.splitlines(), found.stderr) == (0, 3 * [needs], "")
