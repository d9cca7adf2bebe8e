"""Files in and out: bounds on what is read, positions in errors, and results that are whole or absent."""

from __future__ import annotations

import gzip
import json
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from test_traces import FILES
from zstd import zstd

from wait_core import WaitCoreError, files
from wait_core.cli import main
from wait_core.files import FileError, Place, lines, read_object, replacing
from wait_core.hardware import iteration_time
from wait_core.vllm import config
from wait_core.workload.traces import TraceError, detect, load

if TYPE_CHECKING:
    from collections.abc import Callable

PACKERS = {"gz": gzip.compress, "zst": zstd.compress}


def read(path: Path) -> list[str]:
    return list(lines(Place(path)))


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_packed_traces_read_as_what_is_packed(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "trace"  # known by its first bytes, not by its name
    for name, text in FILES.items():
        path.write_bytes(text.encode())
        plain = load(path)
        path.write_bytes(pack(text.encode()))
        assert detect(path) == name
        assert load(path).summary() == plain.summary()


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_damaged_packing_is_refused(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "trace"
    whole = pack(FILES["azure"].encode() * 100)
    for damaged in (whole[: len(whole) // 2], whole[:8], whole[:8] + bytes(8) + whole[16:]):
        path.write_bytes(damaged)
        with pytest.raises(TraceError, match=f"^{path}: cannot be decompressed: "):
            load(path, "azure")


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_what_expands_without_end_is_refused(
    tmp_path: Path, pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_DOCUMENT", 1 << 20)
    path = tmp_path / "bomb"
    path.write_bytes(pack(b"1,2\n" * (1 << 22)))
    if path.stat().st_size * files.MAX_EXPANSION > 1 << 24:
        pytest.fail("this compresses too badly to test anything")
    with pytest.raises(FileError, match="expands to more than 1000 times its size"):
        read(path)


def test_zst_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace.zst"
    path.write_bytes(zstd.compress(FILES["azure"].encode()))
    for module in ("compression", "compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, module, None)
    if "backports" in sys.modules:
        monkeypatch.delattr(sys.modules["backports"], "zstd", raising=False)
    with pytest.raises(TraceError, match=r"pip install '\.\[zstd\]'"):
        load(path)


def test_lines_beyond_the_bound_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("files", *(f"workload.traces.{name}" for name in ("csv_formats", "loading", "json_formats"))):
        monkeypatch.setattr(f"wait_core.{module}.MAX_LINE", 1000)
    path = tmp_path / "file"
    path.write_text("x" * 999 + "\n" + "y" * 1000 + "\n")
    with pytest.raises(FileError, match=f"^{path}:2: a line of more than 1,000 bytes$"):
        read(path)
    for name, line in (("azure", 3), ("mooncake", 3), ("vllm", 3), ("wait-core-log", 3), ("sharegpt", 3)):
        rows = FILES[name].splitlines(keepends=True)
        path.write_text("".join([*rows[:2], '{"x": "' + "z" * 70_000]))
        with pytest.raises(TraceError) as caught:
            load(path, name)
        assert caught.value.line == line, caught.value


@pytest.mark.parametrize("size", [1, 2, 7, 60])
def test_an_array_is_read_in_pieces_of_any_size(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sharegpt.json"
    path.write_text(FILES["sharegpt"].replace("a b c", "ä b\u2028 😀"), encoding="utf-8")
    whole = load(path, "sharegpt").summary()
    monkeypatch.setattr("wait_core.workload.traces.json_formats._PIECE", size)
    assert load(path, "sharegpt").summary() == whole
    path.write_text(FILES["sharegpt"].replace('"alone"', "oops"), encoding="utf-8")
    with pytest.raises(TraceError) as caught:
        load(path, "sharegpt")
    assert caught.value.line == 3


def test_text_that_is_not_utf8_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "latin"
    path.write_bytes("käse\n".encode() + b"k\xe4se\n")
    with pytest.raises(FileError, match=f"^{path}:2: not UTF-8 text: byte 2, 0xe4 of the line$"):
        read(path)
    path.write_bytes(b'{"a":\n "\xff"}')
    with pytest.raises(FileError, match=f"^{path}:2: not UTF-8 text: byte 0xff$"):
        read_object(path)
    for name, text in FILES.items():
        path.write_bytes(text.encode()[:-4] + b"\xff" + text.encode()[-4:])
        with pytest.raises(TraceError, match=rf"^{path}:\d+: not UTF-8 text: ") as caught:
            load(path, name)
        assert caught.value.line == text[:-4].count("\n") + 1


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "marked"
    path.write_bytes(b'\xef\xbb\xbf{"law": "a100"}')
    assert read_object(path) == {"law": "a100"}
    for name, text in FILES.items():
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert detect(path) == name
        assert len(load(path)) == 2


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", ":1: not JSON"),
        (b"null", ": None is not a JSON object"),
        (b"[1]", r": \[1\] is not a JSON object"),
        (b'{"a": 1,\n 2}', ":2: not JSON"),
        (b"[" * 100_000, ": not JSON: nested too deeply"),
        (b'{"a":' * 100_000, ": not JSON: nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", ": not JSON: .* digits"),
        (b"\x7fELF\x02", ":1: not JSON"),
        (b"\xff\xfe{\x00}\x00", ":1: not UTF-8"),
    ],
)
def test_what_is_no_object_is_refused_by_every_reader_of_one(tmp_path: Path, content: bytes, problem: str) -> None:
    """A law, the settings of the command line, the settings file of the adapter."""
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(FileError, match=f"^{path}{problem}"):
        iteration_time(str(path))
    with pytest.raises(config.ConfigError, match=f"^settings file {path}{problem}"):
        config.load({"config_file": str(path)})
    workload = ["--dataset-name", "chat", "--request-rate", "1"]
    assert main(["simulate", *workload, "--config", str(path)]) == 2
    assert main(["simulate", *workload, "--iteration-time", str(path)]) == 2


@pytest.mark.parametrize(
    "command", [["replay"], ["calibrate"], ["simulate", "--dataset-path"], ["plan", "--dataset-path"]]
)
@pytest.mark.parametrize(
    "content", [b"\x7fELF\x02\x01\x01\x00\xff\xfe\n\x00", b"\x00" * 5000, b"\x1f\x8b\x08\x00", b""]
)
def test_binary_and_empty_files_end_every_command_with_one_line(
    tmp_path: Path, command: list[str], content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert main([*command, str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert str(path) in err
    assert len(err) < 500


def test_documents_beyond_the_bound_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_DOCUMENT", 100)
    path = tmp_path / "file.json"
    path.write_text('{"a": "' + "x" * 100 + '"}')
    with pytest.raises(FileError, match="more than 100 bytes"):
        read_object(path)


def test_a_result_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "result"
    with replacing(path) as file:
        file.write("first")
        assert not path.exists()
    assert path.read_text() == "first"
    for problem in (OSError(28, "No space left on device"), KeyboardInterrupt()):
        with pytest.raises(type(problem)), replacing(path) as file:  # noqa: PT012
            file.write("half of the sec")
            raise problem
        assert path.read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["result"]


def test_links_permissions_and_devices_stay_what_they_are(tmp_path: Path) -> None:
    path, link = tmp_path / "result", tmp_path / "link"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to(path)
    with replacing(link) as file:
        file.write("new")
    assert link.is_symlink()
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    mask = os.umask(0o027)
    try:
        with replacing(tmp_path / "fresh") as file:
            file.write("new")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "fresh").stat().st_mode) == 0o640
    with replacing("/dev/null") as file:
        file.write("nothing")
    reader, writer = os.pipe()
    with open(reader, encoding="utf-8") as seen:  # noqa: PTH123  a number
        with replacing(f"/dev/fd/{writer}") as file:
            file.write("through a pipe")
        os.close(writer)
        assert seen.read() == "through a pipe"
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_result_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object, **__: object) -> None:
        pytest.fail("the work began")

    for name in ("cli.simulate.run", "cli.demo.simulate", "cli.plan.plan", "cli.gpus.offers", "logs.step_log.load"):
        monkeypatch.setattr(f"wait_core.{name}", work)
    workload = ["--dataset-name", "p64d32", "--request-rate", "20", "--num-prompts", "10"]
    llama = ["--gpu", "h100", "--model", "Meta-Llama-3.1-8B"]
    target = str(tmp_path / "absent" / "result.png")
    for command in (
        ["simulate", *workload, "--save-result", target],
        ["demo", "--output", target],
        ["calibrate", "steps.jsonl", "--output", target],
        ["plan", *workload, "--picture", target],
        ["plan", *workload, *llama, "--slo-ttft", "100", "--picture", target],
    ):
        assert main(command) == 2
        out, err = capsys.readouterr()
        assert (out, err) == ("", f"wait-core: {target}: No such file or directory\n")


def test_a_failed_run_leaves_the_last_result(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    workload = ["--dataset-name", "p64d32", "--request-rate", "20", "--num-prompts", "10", "--save-result", str(path)]
    assert main(["simulate", *workload]) == 0
    kept = path.read_text()
    assert main(["simulate", *workload, "--policy", "wiat"]) == 2
    assert path.read_text() == kept
    assert json.loads(kept)["completed"] == 10


def test_errors_of_files_are_ours() -> None:
    assert issubclass(FileError, WaitCoreError)
    assert issubclass(TraceError, FileError)
