"""explore.py as a command: what it refuses, the index that it makes or goes on with, and the pages that it serves."""

import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import explorer_sites
import pytest

from devinterp_func import records
from devinterp_func.show import explorer

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))  # where the scripts find each other

import explore  # noqa: E402

pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return explorer_sites.site(tmp_path_factory.getbasetemp())


@pytest.fixture
def run(site, tmp_path):
    """A copy of the site's run without an index."""
    return Path(shutil.copytree(site.run.path, tmp_path / "run"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": 0}, "--port is 0; it must be at least 1"),
        ({"port": 65_536}, "the port is 65536; it must be one of 1 to 65535"),
        ({"pages": 0, "export": Path("pages")}, "--pages is 0"),
        ({"pages": 5}, "--pages means nothing without --export"),
        ({"port": 5, "export": Path("pages")}, "--port means nothing with --export"),
        ({"most": 0}, "--most is 0"),
        ({"most": 5}, "keeps all visits, not 5: leave --most out, or remove that folder"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_served(site, settings, message):
    with pytest.raises(ValueError, match=message):
        explore.main(explore.Settings(site.run.path, **settings))


def test_a_port_that_another_program_has(site):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} of 127.0.0.1 cannot be had: .*; choose another"):
            explore.main(explore.Settings(site.run.path, port=port))


def test_an_index_is_made_once_and_gone_on_with_as_it_is(run, tmp_path, capsys):
    settings = explore.Settings(run, most=2, export=tmp_path / "pages", pages=3)
    explore.main(settings)
    assert "indexing 46 steps" in capsys.readouterr().out
    made = records.read_index(explorer.beside(run))
    assert (made.most, made.n_steps) == (2, 46)
    before = {path: path.stat().st_mtime_ns for path in explorer.beside(run).rglob("*.safetensors")}
    explore.main(explore.Settings(run, export=tmp_path / "pages", pages=2))  # without --most: the one that is there
    assert "indexing" not in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in explorer.beside(run).rglob("*.safetensors")} == before
    with pytest.raises(ValueError, match="keeps 2 visits a neuron, not 3"):
        explore.main(explore.Settings(run, most=3))


def test_it_serves_until_it_is_interrupted(site):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, EXPERIMENTS / "explore.py", site.run.path, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline().startswith(f"http://127.0.0.1:{port}")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/run.html", timeout=60) as answer:
            assert answer.status == 200
        server.send_signal(signal.SIGINT)
    assert server.returncode in (0, 130)
