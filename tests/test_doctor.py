"""`wait-core doctor`: what it finds installed, and what a server reports."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import socket
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement

from wait_core.cli import doctor, main

if TYPE_CHECKING:
    from collections.abc import Iterator

ACTIVE = """# HELP wait_core_active 1 while wait-core schedules
# TYPE wait_core_active gauge
wait_core_active{engine="0",model_name="m"} 1.0
wait_core_policy_info{engine="0",mode="active",model_name="m",policy="adaptive"} 1.0
wait_core_watchdog_total{engine="0",model_name="m"} 0.0
vllm:num_requests_running{engine="0"} 3.0
vllm:strange{engine="0"} notanumber
"""


@pytest.fixture(autouse=True)
def _declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry points that pyproject.toml declares, whatever the installed package had when it was built."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points = [
        importlib.metadata.EntryPoint(name, target, group)
        for group, named in project["entry-points"].items()
        for name, target in named.items()
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [p for p in points if p.group == group])


@contextlib.contextmanager
def server(text: str, load: str | None = None) -> Iterator[str]:
    """Serve `text` at /metrics, and `load`, if it has one, as the middleware does."""
    pages = {"/metrics": text} | ({} if load is None else {"/get_load": load})

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path in pages else 404)
            self.end_headers()
            self.wfile.write(pages.get(self.path, "").encode())

        def log_message(self, *_arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()
            thread.join()


def _babble(listening: socket.socket) -> None:
    with listening.accept()[0] as connection:
        connection.recv(1024)
        connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")


def findings(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, tuple[str, str]]]:
    status = main(["doctor", *arguments, "--json"])
    rows = json.loads(capsys.readouterr().out)
    return status, {row["subject"]: (row["state"], row["detail"]) for row in rows}


def test_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    status, found = findings(capsys)
    assert status == 0
    assert found["numpy"] == ("ok", importlib.metadata.version("numpy"))
    assert found["the core decides"][0] == "ok"
    assert found["metrics for vLLM"] == ("ok", "wait_core.vllm.metrics:WaitCoreStatLogger")
    assert found["vLLM says why it refuses"] == ("ok", "wait_core.vllm.refusal:register")
    for name in ("--scheduler-cls wait_core.vllm.WaitScheduler", "--middleware wait_core.vllm.AdmissionMiddleware"):
        assert found[name][0] == "ok"
    assert {"vllm", "matplotlib", "scipy", "tqdm"} <= set(found)
    assert not {"mkdocs-material", "pytest"} & set(found), "a user need not install what a developer needs"
    assert main(["doctor"]) == 0
    assert "numpy" in capsys.readouterr().out


def test_what_does_not_fit_is_a_fault(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"vllm": "0.35.1", "numpy": "2.3.0", "tqdm": "4.67"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    status, found = findings(capsys)
    assert status == 1
    assert found["vllm"][0] == "FAULT"
    assert found["vllm"][1].startswith("0.35.1, wanted ")
    assert found["matplotlib"] == ("absent", "for pictures: pip install '.[plot]' in the repository of wait-core")
    versions["vllm"] = "0.32.0+cpu"
    assert findings(capsys)[1]["vllm"] == ("ok", "0.32.0+cpu")
    versions.pop("tqdm")
    status, found = findings(capsys)
    assert (status, found["tqdm"]) == (1, ("FAULT", "needed: pip install tqdm"))


def test_an_entry_point_that_is_missing_left_out_or_leads_nowhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(doctor.PLUGINS.values())
    monkeypatch.setenv("VLLM_PLUGINS", "lora_resolver")
    status, found = findings(capsys)
    assert status == 1
    for name in names:
        assert found[name] == ("FAULT", "VLLM_PLUGINS=lora_resolver leaves it out: add wait_core")
    monkeypatch.setenv("VLLM_PLUGINS", "lora_resolver,wait_core")
    assert findings(capsys)[0] == 0
    point = importlib.metadata.EntryPoint("wait_core", "wait_core.vllm.refusal:absent", "")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point] if "general" in group else [])
    found = findings(capsys)[1]
    assert found[names[0]] == ("FAULT", "no entry point vllm.stat_logger_plugins: reinstall the package")
    assert found[names[1]][0] == "FAULT"
    assert "no such name" in found[names[1]][1]
    assert doctor._defined("wait_core.absent:thing")[0] == "FAULT"


@pytest.mark.parametrize(
    ("version", "wanted", "state"),
    [
        ("0.32", "thing>=0.32", "ok"),
        ("0.32.1+cpu", "thing<0.34", "ok"),
        ("0.34.0", "thing<0.34", "FAULT"),
        ("0.9", "thing>=0.32", "FAULT"),
        ("2.60.0", "thing[serve]>=2.60,<2.61", "ok"),
        ("0.34.0rc1", "thing<0.34", "FAULT"),
        ("1.0", "thing", "ok"),
    ],
)
def test_versions_are_compared_as_pip_does(
    monkeypatch: pytest.MonkeyPatch, version: str, wanted: str, state: str
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    assert doctor._installed(Requirement(wanted), "")[:2] == ("thing", state)


def test_ray_is_looked_at(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.60.1" if name == "ray" else "0")
    assert findings(capsys)[1]["ray"] == ("ok", "2.60.1")


def test_a_server_that_wait_core_schedules(capsys: pytest.CaptureFixture[str]) -> None:
    with server(ACTIVE) as url:
        status, found = findings(capsys, "--url", url)
    assert status == 0
    assert found["its scheduler, engine 0"] == ("ok", "wait-core schedules")
    assert found["its policy"] == ("ok", "adaptive, active")
    assert found["its middleware"] == (
        "absent",
        "vLLM is started without --middleware wait_core.vllm.AdmissionMiddleware",
    )
    with server(ACTIVE, '{"load": 3}') as url:
        assert findings(capsys, "--url", url)[1]["its middleware"] == ("ok", "/get_load: 3")
    with server(ACTIVE, "[]") as url:
        status, found = findings(capsys, "--url", url)
    assert (status, found["its middleware"][0]) == (1, "FAULT")


def test_a_server_that_it_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    with server("vllm:num_requests_running 0\n") as url:
        status, found = findings(capsys, "--url", url)
    assert status == 1
    assert found["its scheduler"][0] == "FAULT"
    assert "--scheduler-cls wait_core.vllm.WaitScheduler" in found["its scheduler"][1]
    failed = ACTIVE.replace('model_name="m"} 1.0\nwait_core_policy', 'model_name="m"} 0.0\nwait_core_policy')
    with server(failed.replace('watchdog_total{engine="0",model_name="m"} 0', 'watchdog_total{engine="0"} 7')) as url:
        status, found = findings(capsys, "--url", url)
    assert status == 1
    assert found["its scheduler, engine 0"][0] == "FAULT"
    assert "7 times" in found["its watchdog"][1]
    status, found = findings(capsys, "--url", url, "--timeout", "2")  # it has gone
    assert (status, found["server"][0]) == (1, "FAULT")
    with socket.create_server(("127.0.0.1", 0)) as listening:  # and something else has come in its place
        thread = threading.Thread(target=_babble, args=(listening,))
        thread.start()
        status, found = findings(capsys, "--url", f"http://127.0.0.1:{listening.getsockname()[1]}")
        thread.join()
    assert (status, found["server"][0]) == (1, "FAULT")
    assert main(["doctor", "--url", "ftp://a"]) == 2
    assert "--url ftp://a" in capsys.readouterr().err
