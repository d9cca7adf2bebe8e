"""Files in and out: text that is read within bounds, and results that are written whole or not at all.

Whatever is read here may be damaged, unfinished, compressed or hostile. It comes out as text or plain values, or as a
`FileError` that says where the file is wrong; neither memory nor time grows beyond what the bounds below allow.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import reprlib
import secrets
import stat
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from wait_core._core import WaitCoreError
from wait_core.extras import install

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_LINE = 1 << 24
"""Longest line that is read, bytes."""
MAX_DOCUMENT = 1 << 26
"""Largest JSON document that is read as a whole, bytes: settings, a law, what a policy has learned."""
MAX_EXPANSION = 1000
"""Largest expansion of a compressed file, beyond `MAX_DOCUMENT`: text is usually packed to a tenth."""

_BOM = b"\xef\xbb\xbf"
_SHOWN = 60
"""Characters of a value in a message."""
_SAID = 300
"""Characters at each end of a message: it may contain names from the file, of any length."""


class FileError(WaitCoreError):
    """A file that does not have the expected form.

    Attributes
    ----------
    path : str
        The file.
    line : int or None
        Line number, from 1; None where the whole file is at fault.
    column : str or None
        Column of a csv file, or key of a JSON object.
    value : object
        The value there.

    """

    def __init__(
        self,
        path: Path | str,
        problem: str,
        *,
        line: int | None = None,
        column: str | None = None,
        value: object = None,
    ) -> None:
        self.path = str(path)
        self.problem = problem if len(problem) <= 2 * _SAID else f"{problem[:_SAID]}…{problem[-_SAID:]}"
        self.line = line
        self.column = column
        self.value = value
        place = self.path if line is None else f"{self.path}:{line}"
        said = self.problem if column is None else f"column {shown(column)}: {self.problem}"
        super().__init__(f"{place}: {said}")

    def __reduce__(self) -> tuple[Any, ...]:
        make = partial(type(self), line=self.line, column=self.column, value=self.value)
        return make, (self.path, self.problem)


@dataclass(slots=True)
class Place:
    """The position of a reader, and the error that it raises: `line` is advanced by the reader."""

    path: Path
    kind: type[FileError] = FileError
    line: int = 0

    def problem(self, text: str, value: object = None) -> FileError:
        """Return the error that states `text` about the current line."""
        return self.kind(self.path, text, line=self.line, value=value)

    def error(self, column: str | None, value: object, expected: str) -> FileError:
        """Return the error for `value` standing in `column` of this line where `expected` should."""
        return self.kind(self.path, f"{shown(value)} is not {expected}", line=self.line, column=column, value=value)

    def too_long(self) -> FileError:
        """Return the error for a line beyond `MAX_LINE`."""
        return self.problem(f"a line of more than {MAX_LINE:,} bytes")

    def missing(self, column: str) -> FileError:
        """Return the error for a line that lacks `column`."""
        return self.kind(self.path, "is missing", line=self.line, column=column)


def shown(value: object) -> str:
    """Return `value` as messages show it, cut to a length."""
    text = repr(value[: _SHOWN + 1]) if isinstance(value, str | bytes) else reprlib.repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


class Source(Protocol):
    """Bytes to read."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, fewer than `size` only at the end."""

    def readline(self, size: int, /) -> bytes:
        """Return the next line, or the next `size` bytes of it."""


class _Unpacked:
    """The contents of a compressed file, up to a bound."""

    def __init__(self, file: Source, most: int, place: Place) -> None:
        self._file = file
        self._left = most
        self._place = place

    def read(self, size: int, /) -> bytes:
        return self._counted(self._file.read(size))

    def readline(self, size: int, /) -> bytes:
        return self._counted(self._file.readline(size))

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise self._place.kind(self._place.path, f"expands to more than {MAX_EXPANSION} times its size")
        return data


@contextlib.contextmanager
def opened(place: Place) -> Iterator[Source]:
    """Open a file for reading bytes; gzip and zstd, recognised by their first bytes, are decompressed.

    Raises
    ------
    FileError
        If it is compressed and damaged, expands without end, or needs a package that is not installed.
    OSError
        If it cannot be opened.

    """
    with place.path.open("rb") as file:
        begin = file.peek(4)[:4]
        damaged: tuple[type[Exception], ...]
        if begin[:2] == b"\x1f\x8b":
            import gzip  # noqa: PLC0415  few files are packed

            unpack, damaged = gzip.open, (gzip.BadGzipFile, EOFError, zlib.error)
        elif begin == b"\x28\xb5\x2f\xfd":
            zstd = _zstd(place)
            unpack, damaged = zstd.open, (zstd.ZstdError, EOFError)
        else:
            yield file
            return
        most = max(MAX_EXPANSION * os.fstat(file.fileno()).st_size, MAX_DOCUMENT)
        try:
            with unpack(file, "rb") as unpacked:
                yield _Unpacked(unpacked, most, place)
        except damaged as error:
            raise place.kind(place.path, f"cannot be decompressed: {error}") from None


def _zstd(place: Place) -> Any:
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415  Python 3.14
    except ImportError:
        try:
            from backports import zstd  # noqa: PLC0415
        except ImportError:
            problem = f"reading zstd needs backports.zstd: {install('zstd')}"
            raise place.kind(place.path, problem) from None
    return zstd


def lines(place: Place) -> Iterator[str]:
    """Yield the lines of a text file with their ends; `place.line` is the number of the last one.

    Raises
    ------
    FileError
        At a line that is too long or not UTF-8 text; of the class that `place` names.

    """
    with opened(place) as file:
        for raw in iter(partial(file.readline, MAX_LINE + 1), b""):
            place.line += 1
            yield decoded(raw, place)


def decoded(raw: bytes, place: Place) -> str:
    """Return the line at `place` as text."""
    if len(raw) > MAX_LINE:
        raise place.too_long()
    try:
        return (raw.removeprefix(_BOM) if place.line == 1 else raw).decode()
    except UnicodeDecodeError as error:
        found = f"byte {error.start + 1}, {raw[error.start]:#04x}"
        raise place.problem(f"not UTF-8 text: {found} of the line", raw[:_SHOWN]) from None


_PLAIN = json.JSONDecoder()


def parsed(text: str, place: Place, decoder: json.JSONDecoder = _PLAIN) -> Any:
    """Return the JSON value of one line."""
    try:
        return decoder.decode(text)
    except json.JSONDecodeError as error:
        raise place.problem(f"not JSON: {error.msg} at character {error.colno}", text[:_SHOWN]) from None
    except ValueError as error:  # a number of thousands of digits, or what the decoder rejects
        raise place.problem(f"not JSON: {error}", text[:_SHOWN]) from None
    except RecursionError:
        raise place.problem("not JSON: nested too deeply", text[:_SHOWN]) from None


def read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises
    ------
    FileError
        If it holds anything else; with the line, where one is at fault.
    OSError
        If it cannot be opened.

    """
    place = Place(Path(path))
    with opened(place) as file:
        raw = file.read(MAX_DOCUMENT + 1)
    if len(raw) > MAX_DOCUMENT:
        raise FileError(place.path, f"more than {MAX_DOCUMENT:,} bytes")
    raw = raw.removeprefix(_BOM)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        place.line = raw.count(b"\n", 0, error.start) + 1
        raise place.problem(f"not UTF-8 text: byte {raw[error.start]:#04x}") from None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        place.line = error.lineno
        raise place.problem(f"not JSON: {error.msg} at character {error.colno}") from None
    except ValueError as error:
        raise FileError(place.path, f"not JSON: {error}") from None
    except RecursionError:
        raise FileError(place.path, "not JSON: nested too deeply") from None
    if not isinstance(value, dict):
        raise FileError(place.path, f"{shown(value)} is not a JSON object", value=value)
    return value


def as_unicode(text: str) -> str:
    """Return `text` with a question mark for each byte of a file name that is not valid UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, binary: bool = False) -> Iterator[IO[Any]]:
    """Open a file that replaces `path` when the block succeeds; otherwise `path` stays as it was.

    Entered before the work starts, so that a result that cannot be written fails early. A device or a pipe is
    written as it is.

    Raises
    ------
    OSError
        If it cannot be written.

    """
    mode, encoding, newline = ("wb", None, None) if binary else ("w", "utf-8", "\n")
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        status = None
    if status is not None and not stat.S_ISREG(status.st_mode):
        # By its own name: a pipe behind /dev/stdout has no other that could be opened.
        with Path(path).open(mode, encoding=encoding, newline=newline) as file:
            yield file
        return
    target = Path(os.path.realpath(path))  # where a link points
    if status is not None and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    # Beside it, as a name can only be replaced within one file system.
    beside = target.with_name(f".{target.name[:50]}.{secrets.token_hex(4)}")
    try:
        file = beside.open(mode.replace("w", "x"), encoding=encoding, newline=newline)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None
    try:
        with file:
            yield file
        if status is not None:
            beside.chmod(stat.S_IMODE(status.st_mode))
        beside.replace(target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
