"""Jobs: asked for by forms with a token, one at a time, each cancellable; what is wrong is said and nothing starts."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import explorer_sites
import pytest
from starlette.testclient import TestClient

from devinterp_func.show import explorer, terminal
from devinterp_func.show.explorer import Jobs, _job_forms, _jobs

HOST: dict[str, Any] = {"base_url": "http://127.0.0.1:8000", "follow_redirects": False}
SAYS = "import sys; print(sys.argv[1:])"
COUNTS = """
import json, os, sys, time
with open(os.environ["DEVINTERP_PROGRESS"], "a") as file:
    file.write(json.dumps({"done": 3, "total": 7, "doing": "counting"}) + "\\n{")
print("three", flush=True)
time.sleep(600)
"""
GENTLE = """
import sys, time
try:
    print("started", flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    print("whole", flush=True)
    sys.exit(130)
"""
DEAF = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(600)
"""
RUN = "sys.exit(subprocess.call(sys.argv[1:]))"
BAD = "import sys; print('<b>oh</b>', file=sys.stderr); sys.exit(3)"


def toy(code):
    """A command that runs some Python on the values."""
    return lambda values: [sys.executable, "-c", code, *(f"{name}={value}" for name, value in values.items())]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return explorer_sites.site(tmp_path_factory.getbasetemp())


@pytest.fixture
def jobs():
    """A queue whose kinds of jobs are pieces of Python."""
    codes = {"says": SAYS, "counts": COUNTS, "gentle": GENTLE, "deaf": DEAF, "bad": BAD}
    queue = Jobs({name: toy(code) for name, code in codes.items()}, patience=0.5)
    yield queue
    queue.close()


@pytest.fixture
def client(site, monkeypatch):
    monkeypatch.setattr("devinterp_func.show.explorer._app.step_seconds", lambda run: 0.25)
    commands = {"replay": toy(SAYS), "ledger": toy(GENTLE), "retrain": toy(BAD)}
    with TestClient(explorer.app(site, commands, patience=0.5), **HOST) as client:
        yield client


def until(true, seconds=30):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def queue_of(client):
    return client.app.state.jobs


def post(client, address="/jobs/start", headers=None, **values):
    return client.post(address, data={"token": queue_of(client).token, **values}, headers=headers or {})


# ---- the queue


def test_jobs_run_one_at_a_time_in_their_order(jobs):
    first = jobs.start("gentle", {})
    others = [jobs.start("says", {"n": n}) for n in range(3)]
    until(lambda: "started" in first.said)
    assert [job.state for job in (first, *others)] == ["running", "waiting", "waiting", "waiting"]
    jobs.cancel(others[1])
    jobs.cancel(first)
    assert all(jobs.wait(job, 30) for job in (first, *others))
    assert [job.state for job in (first, *others)] == ["cancelled", "done", "cancelled", "done"]
    assert [job.said for job in others] == ["['n=0']\n", "", "['n=2']\n"]
    assert first.said == "started\nwhole\n" and first.status == 130


def test_a_job_that_does_not_listen_is_ended_all_the_same(jobs):
    job = jobs.start("deaf", {})
    until(lambda: "deaf" in job.said)
    jobs.cancel(job)
    jobs.cancel(job)  # once more changes nothing
    assert jobs.wait(job, 30) and job.state == "cancelled" and job.status == 128 + signal.SIGTERM


def test_a_failure_is_the_jobs_own(jobs):
    failed = jobs.start("bad", {})
    jobs.commands["nothing"] = lambda values: ["/no/such/program"]
    missing = jobs.start("nothing", {})
    jobs.commands["nul"] = lambda values: ["a\0b"]
    wrong = jobs.start("nul", {})
    last = jobs.start("says", {})
    assert jobs.wait(last, 30) and last.state == "done"
    assert (failed.state, failed.status, failed.said) == ("failed", 3, "<b>oh</b>\n")
    assert missing.state == "failed" and "did not start" in missing.said
    assert wrong.state == "failed" and "null byte" in wrong.said
    with pytest.raises(LookupError, match="no job 5; there are 4"):
        jobs.get(5)


def test_progress_is_the_last_whole_line(jobs):
    job = jobs.start("counts", {})
    assert jobs.progress(job) is None or jobs.progress(job).done == 3
    until(lambda: "three" in job.said)
    assert jobs.progress(job) == _jobs.Progress(3, 7, "counting")


def test_of_much_that_is_printed_the_newest_is_kept(jobs, monkeypatch):
    monkeypatch.setattr(_jobs, "KEPT", 1000)
    jobs.commands["much"] = toy("print('a' * 5000); print('é' * 900)")
    job = jobs.start("much", {})
    assert jobs.wait(job, 30)
    assert len(job.said) == 1000 and job.said.endswith("é" * 900 + "\n") and job.cut == 5902 - 1000


def test_a_closed_queue_ends_its_jobs_and_leaves_no_process():
    queue = Jobs({"gentle": toy(GENTLE)}, patience=0.5)
    running, waiting = queue.start("gentle", {}), queue.start("gentle", {})
    until(lambda: "started" in running.said)
    process = running.process
    queue.close()
    assert process is not None and process.returncode == 130
    assert running.state == "cancelled" and waiting.state == "cancelled"
    with pytest.raises(_jobs.Full):
        queue.start("gentle", {})


def test_a_killed_server_ends_its_job(tmp_path):
    """Not even a signal that cannot be caught leaves the worker running; it is interrupted and can end gently."""
    code = f"""
import sys, time
from devinterp_func.show.explorer import Jobs
worker = '''
import os, sys, time
open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
try:
    time.sleep(600)
except KeyboardInterrupt:
    open({str(tmp_path / "whole")!r}, "w").write("whole")
'''
jobs = Jobs({{"x": lambda values: [sys.executable, "-c", worker]}}, patience=5.0)
jobs.start("x", {{}})
time.sleep(600)
"""
    server = subprocess.Popen([sys.executable, "-c", code])
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), 60)
    server.kill()
    server.wait()
    pid = int((tmp_path / "pid").read_text())
    until(lambda: not Path(f"/proc/{pid}").exists() if Path("/proc").exists() else True)
    assert (tmp_path / "whole").read_text() == "whole"


def test_a_script_says_how_far_it_is_where_it_is_asked_to(tmp_path, monkeypatch):
    monkeypatch.setenv(terminal.PROGRESS, str(tmp_path / "told"))
    monkeypatch.setattr(terminal, "TOLD_EVERY", 0)
    assert list(terminal.watched("abc", 5, "counting", first=2)) == list("abc")
    told = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert told[0] == {"done": 2, "total": 5, "doing": "counting"}
    assert told[-1] == {"done": 5, "total": 5, "doing": "counting"}
    monkeypatch.delenv(terminal.PROGRESS)
    list(terminal.watched("abc", 3, "counting"))
    assert len((tmp_path / "told").read_text().splitlines()) == len(told)


# ---- forms


def test_a_form_says_what_it_costs_and_then_starts(client):
    page = client.get("/jobs.html", params={"job": "replay", "step": "12"}).text
    assert "about 4" in page and queue_of(client).token in page and not queue_of(client).all
    until(lambda: "a step takes 0.25 s here" in client.get("/jobs.html?job=replay&step=12").text)
    answer = post(client, job="replay", step="12")
    assert (answer.status_code, answer.headers["location"]) == (303, "/job/1.html")
    job = queue_of(client).get(1)
    assert queue_of(client).wait(job, 30) and job.said == "['step=12']\n"
    page = client.get("/job/1.html").text
    assert "is done" in page and "step/12.html" in page and 'http-equiv="refresh"' not in page


def test_a_running_jobs_page_loads_itself_again_and_cancels(client):
    post(client, job="ledger", probe="loss", start="10", stop="12")
    job = queue_of(client).get(1)
    until(lambda: "started" in job.said)
    page = client.get("/job/1.html").text
    assert '<meta http-equiv="refresh"' in page and "<progress" in page and "started" in page
    assert post(client, "/job/1/cancel").status_code == 303
    assert queue_of(client).wait(job, 30) and job.state == "cancelled"
    page = client.get("/job/1.html").text
    assert "was cancelled" in page and "Start it again" in page
    answer = post(client, job="ledger", probe="loss", start="10", stop="12")
    assert answer.headers["location"] == "/job/2.html" and queue_of(client).get(2).command == job.command


@pytest.mark.parametrize(
    "values, message",
    [
        ({"job": "replay", "step": "46"}, "there is no step 46; they are 0 to 45"),
        ({"job": "replay", "step": "-1"}, "is no whole number"),
        ({"job": "replay"}, "is no whole number"),
        ({"job": "ledger", "probe": "nonsense", "start": "0", "stop": "3"}, "names no probe"),
        ({"job": "ledger", "probe": "<script>alert(7)</script>", "start": "0", "stop": "3"}, "names no probe"),
        ({"job": "ledger", "probe": "", "start": "0", "stop": "3"}, "0 probes are named"),
        ({"job": "ledger", "probe": "loss\0", "start": "0", "stop": "3"}, "cannot be given to a command"),
        ({"job": "ledger", "probe": "--help", "start": "0", "stop": "3"}, "names no probe"),
        ({"job": "ledger", "probe": "loss", "start": "5", "stop": "3"}, "steps 5 to 3"),
        ({"job": "ledger", "probe": "loss", "start": "5", "stop": "99"}, "steps 5 to 99"),
        ({"job": "retrain", "without": "1", "probe": "loss", "start": "3", "steps": "2"}, "no snapshot before step 3"),
        ({"job": "retrain", "without": "9999", "probe": "loss", "start": "0", "steps": "2"}, "there is no datum 9999"),
        ({"job": "retrain", "without": "x", "probe": "loss", "start": "0", "steps": "2"}, "is no whole number"),
    ],
)
def test_wrong_values_are_named_beside_the_filled_form_and_start_nothing(client, values, message):
    answer = post(client, **values)
    assert answer.status_code == 422 and not queue_of(client).all
    assert message in answer.text and 'role="alert"' in answer.text and 'aria-invalid="true"' in answer.text
    assert "<script>alert" not in answer.text
    if values.get("start"):
        assert f'value="{values["start"]}"' in answer.text


def test_data_are_left_out_of_steps_that_saw_them(site, client):
    step, row = 25, 2
    datum = int(site.index.course.datum[step, row])
    form = _job_forms.suggested(replace(site, jobs=queue_of(client)), "retrain", {"without": str(datum)})
    last = max(site.index.visits(datum)[:, 0].tolist())
    assert int(form["start"]) in site.run.snapshots and int(form["start"]) <= last
    assert int(form["start"]) + int(form["steps"]) > last
    page = client.get("/jobs.html", params={"job": "retrain", "without": [str(datum)]}).text
    assert f"without {datum}" in page and "Start" in page
    unseen = [d for d in range(site.run.n_data) if d not in site.index.course.datum[:10]]
    wrong = post(client, job="retrain", without=str(unseen[0]), probe="loss", start="0", steps="10")
    assert wrong.status_code == 422 and f"none of the steps 0 to 10 saw datum {unseen[0]}" in wrong.text


# ---- who may ask


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"host": "evil.example"}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"content-type": "text/plain"}, 415),
    ],
)
def test_others_are_refused(client, headers, status):
    answer = client.post("/jobs/start", content=f"token={queue_of(client).token}&job=replay&step=1", headers=headers)
    assert answer.status_code == status and not queue_of(client).all


@pytest.mark.parametrize("token", [None, "", "wrong", "é"])
def test_a_form_without_the_token_is_refused(client, token):
    values = {"job": "replay", "step": "1"} | ({} if token is None else {"token": token})
    assert client.post("/jobs/start", data=values).status_code == 403
    assert client.post("/job/1/cancel", data=values).status_code == 403
    assert not queue_of(client).all


def test_too_much_is_refused_and_what_is_not_there_is_not_there(client):
    assert post(client, job="replay", step="1" * 70_000).status_code == 413
    assert post(client, **{f"a{i}": "x" for i in range(60)}).status_code == 413
    assert post(client, job="format-disk").status_code == 404
    assert post(client, "/job/7/cancel").status_code == 404
    for address in ("/job/7.html", "/job/x.html", "/job/01.html", "/jobs.html?job=format-disk", "/job/7/events"):
        assert client.get(address).status_code == 404
    assert client.get("/jobs/start").status_code == 404 and client.get("/job/1/cancel").status_code == 404


def test_without_commands_there_are_no_jobs(site):
    with TestClient(explorer.app(site), **HOST) as client:
        assert "starts no commands" in client.get("/jobs.html").text
        assert client.post("/jobs/start", data={"job": "replay"}).status_code in (404, 405)
        assert client.get("/job/1.html").status_code == 404


def test_looking_changes_nothing(site, client):
    def state():
        folders = (site.run.path, explorer.beside(site.run.path), site.folder)
        files = [path for folder in folders if Path(folder).exists() for path in sorted(Path(folder).rglob("*"))]
        return [(str(path), path.read_bytes() if path.is_file() else b"") for path in files]

    before = state()
    for address in ("/", "/jobs.html", "/probes.html", "/datum/3.html", "/step/3.html", "/jobs.html?job=ledger"):
        assert client.get(address).status_code in (200, 307)
    assert state() == before and not queue_of(client).all


# ---- events


def events(client, address, headers=None):
    with client.stream("GET", address, headers=headers or {}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        blocks = "".join(answer.iter_text()).strip().split("\n\n")
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]


def test_events_tell_a_job_to_its_end_and_go_on_where_a_reader_stopped(client):
    post(client, job="retrain", without="3", probe="loss", start="0", steps="46")
    queue_of(client).wait(queue_of(client).get(1), 30)
    [*_, last] = events(client, "/job/1/events")
    about = json.loads(last["data"])
    assert last["event"] == "over" and about["state"] == "failed" and about["said"] == "<b>oh</b>\n"
    [again] = events(client, "/job/1/events", {"last-event-id": last["id"]})
    assert json.loads(again["data"])["said"] == ""


def test_events_end_at_the_limit_of_their_number(client):
    post(client, job="ledger", probe="loss", start="0", stop="3")
    until(lambda: "started" in queue_of(client).get(1).said)
    [first] = events(client, "/job/1/events?limit=1")
    assert first["event"] == "job" and json.loads(first["data"])["said"] == "started\n"


def test_a_hostile_probe_is_text_on_every_page(client):
    probe = "bigram:<script>alert(1)</script> $x$"
    page = client.get("/jobs.html", params={"job": "ledger", "probe": probe, "start": "0", "stop": "2"}).text
    answer = post(client, job="ledger", probe=probe, start="0", stop="2")
    assert answer.status_code == 303 and queue_of(client).get(1).values["probe"] == (probe,)
    for text in (page, client.get("/job/1.html").text, client.get("/jobs.html").text):
        assert "<script>alert" not in text and "&lt;script&gt;alert" in text


def test_the_guard_gives_the_commands_own_status():
    guard = [sys.executable, str(Path(_jobs.__file__).with_name("_guard.py")), "1"]
    for code, status in (("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137), ("", 0)):
        with subprocess.Popen([*guard, sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
            assert process.wait(60) == status


def test_the_guard_interrupts_also_where_interrupts_were_ignored():
    """As they are in a server that a shell started in the background."""
    code = f"import signal, subprocess, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); {RUN}"
    guard = [sys.executable, str(Path(_jobs.__file__).with_name("_guard.py")), "20", sys.executable, "-c", GENTLE]
    with subprocess.Popen(
        [sys.executable, "-c", code, *guard], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == b"started\n"
        process.stdin.close()
        assert process.stdout.readline() == b"whole\n" and process.wait(60) == 130
