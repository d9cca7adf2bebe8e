"""`wait-core doctor`: what is installed, whether it fits together, and whether a server's scheduler is active.

vLLM is not imported, which would take seconds and a GPU: only versions, entry points and sources are read.
"""

from __future__ import annotations

import ast
import http.client
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from wait_core._core import DEBUG_BUILD, Scheduler, WaitCoreError, __version__
from wait_core.cli import arguments as kinds
from wait_core.cli.output import tabulated
from wait_core.extras import PURPOSES, install

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

PLUGINS = {"vllm.stat_logger_plugins": "metrics for vLLM", "vllm.general_plugins": "vLLM says why it refuses"}
"""Groups of entry points in which vLLM looks for ours, and what each is for."""
NAMED = {
    "wait_core.vllm.scheduler:WaitScheduler": "--scheduler-cls wait_core.vllm.WaitScheduler",
    "wait_core.vllm.admission:AdmissionMiddleware": "--middleware wait_core.vllm.AdmissionMiddleware",
}
"""The classes that vLLM takes from its command line, and the option for each."""
FAULT, ABSENT, GOOD = "FAULT", "absent", "ok"
OF_DEVELOPERS = {"all", "docs", "test"}
"""Extras that no user needs to install."""
UNREACHABLE = (urllib.error.URLError, http.client.HTTPException, OSError, ValueError)
"""What reading from a server may raise."""
MOST_BYTES = 1 << 24
"""Most bytes read of a server's metrics."""

Finding = tuple[str, str, str]
"""Subject, one of the three states, and a detail."""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--url", metavar="URL", help="a running server, as http://localhost:8000: is wait-core active?")
    parser.add_argument(
        "--timeout", type=kinds.positive, default=5.0, metavar="S", help="seconds to wait for the server (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="a list of objects: subject, state, detail")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    found = [*_package(), *_others()]
    if arguments.url is not None:
        found += _server(arguments.url, arguments.timeout)
    if arguments.json:
        print(json.dumps([dict(zip(("subject", "state", "detail"), each, strict=True)) for each in found]))
    else:
        print(tabulated(["", "state", ""], found))
    return int(any(state == FAULT for _, state, _ in found))


def _package() -> Iterator[Finding]:
    yield "Python", GOOD, f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"
    slow = "a debug build, tens of times slower: install a wheel, or maturin develop --release"
    yield "wait-core", FAULT if DEBUG_BUILD else GOOD, slow if DEBUG_BUILD else __version__
    core = Scheduler(kv_blocks=10)
    core.add(1, 16, 16)
    plan = core.plan()
    decides = plan.admitted == [1] and plan.prefill == [(1, 16)]
    yield "the core decides", GOOD if decides else FAULT, "one request, one prefill" if decides else str(plan)


def _others() -> Iterator[Finding]:
    """Check what the package needs, or can use, according to its own metadata."""
    provided = importlib.metadata.metadata("wait-core").get_all("Provides-Extra") or ()
    extras = [{"extra": each} for each in ("", *provided) if each not in OF_DEVELOPERS]
    uses: dict[str, tuple[Requirement, str]] = {}
    for wanted in map(Requirement, importlib.metadata.requires("wait-core") or ()):
        of = [each["extra"] for each in extras if wanted.marker is None or wanted.marker.evaluate(each)]
        if of and wanted.name not in {"torch", "wait-core"}:
            uses.setdefault(wanted.name, (wanted, of[0]))
    for wanted, extra in uses.values():
        yield _installed(wanted, extra)
    yield from map(_plugin, PLUGINS)
    for target, subject in NAMED.items():
        yield subject, *_defined(target)


def _plugin(group: str) -> Finding:
    """Check the entry point by which vLLM finds a plugin of wait-core."""
    subject = PLUGINS[group]
    allowed = os.environ.get("VLLM_PLUGINS")
    found = [each.value for each in importlib.metadata.entry_points(group=group) if each.name == "wait_core"]
    if not found:
        return subject, FAULT, f"no entry point {group}: reinstall the package"
    if allowed is not None and "wait_core" not in allowed.split(","):
        return subject, FAULT, f"VLLM_PLUGINS={allowed} leaves it out: add wait_core"
    return subject, *_defined(found[0])


def _defined(target: str) -> tuple[str, str]:
    """Whether what `target` names, as module:name, is in the source that Python would import."""
    module, _, name = target.partition(":")
    try:
        spec = importlib.util.find_spec(module)
        tree = ast.parse(Path(str(spec and spec.origin)).read_text(encoding="utf-8"))
    except (ImportError, OSError, SyntaxError) as error:
        return FAULT, f"{target}: {error}: reinstall the package"
    defined = any(isinstance(each, ast.ClassDef | ast.FunctionDef) and each.name == name for each in tree.body)
    return (GOOD, target) if defined else (FAULT, f"{target}: no such name in {module}: reinstall the package")


def _installed(wanted: Requirement, extra: str) -> Finding:
    name = wanted.name
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if extra:
            return name, ABSENT, f"for {PURPOSES.get(extra, extra)}: {install(extra)}"
        return name, FAULT, f"needed: pip install {name}"
    fits = wanted.specifier.contains(version, prereleases=True)
    return name, GOOD if fits else FAULT, f"{version}{'' if fits else f', wanted {wanted.specifier}'}"


def _server(url: str, timeout: float) -> Iterator[Finding]:
    address = f"{url.rstrip('/')}/metrics"
    if not address.startswith(("http://", "https://")):
        raise WaitCoreError(f"--url {url}: expected http://HOST:PORT")
    try:
        text = _answer(address, timeout)
    except UNREACHABLE as error:
        yield "server", FAULT, f"{address}: {getattr(error, 'reason', error)}"
        return
    samples = list(_samples(text.decode("utf-8", "replace")))
    active = [(labels, value) for name, labels, value in samples if name == "wait_core_active"]
    yield "server", GOOD, f"{address}: {len(samples):,} samples"
    if not active:
        how = "--scheduler-cls wait_core.vllm.WaitScheduler, and not --disable-log-stats"
        yield "its scheduler", FAULT, f"no wait_core_active: start vLLM with {how}"
    for labels, value in active:
        engine = f"engine {labels.get('engine', '0')}"
        said = "wait-core schedules" if value == 1 else "an error of wait-core left scheduling to vLLM: see its log"
        yield f"its scheduler, {engine}", GOOD if value == 1 else FAULT, said
    yield _middleware(url.rstrip("/"), timeout)
    for name, labels, value in samples:
        if name == "wait_core_policy_info" and value == 1:
            yield "its policy", GOOD, f"{labels.get('policy', '?')}, {labels.get('mode', '?')}"
        elif name == "wait_core_watchdog_total" and value > 0:
            yield "its watchdog", FAULT, f"opened the gates {value:,.0f} times: the policy does not fit the traffic"


def _answer(address: str, timeout: float) -> bytes:
    """Return the first `MOST_BYTES` of what is at an address; raises one of `UNREACHABLE`."""
    with urllib.request.urlopen(address, timeout=timeout) as answer:  # noqa: S310  http or https, as checked
        read: bytes = answer.read(MOST_BYTES)
    return read


def _middleware(url: str, timeout: float) -> Finding:
    """Whether the middleware answers what routers ask, which vLLM itself does not."""
    subject = "its middleware"
    try:
        load = json.loads(_answer(f"{url}/get_load", timeout))["load"]
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.NOT_FOUND:
            return subject, ABSENT, "vLLM is started without --middleware wait_core.vllm.AdmissionMiddleware"
        return subject, FAULT, f"{url}/get_load: {error}"
    except (*UNREACHABLE, KeyError, TypeError) as error:
        return subject, FAULT, f"{url}/get_load: {getattr(error, 'reason', error)}"
    return subject, GOOD, f"/get_load: {load}"


def _samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield name, labels and value of each sample in Prometheus' text format."""
    for line in text.splitlines():
        found = re.match(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        if found is None or line.startswith("#"):
            continue
        try:
            value = float(found[3])
        except ValueError:
            continue
        yield found[1], dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', found[2] or "")), value
