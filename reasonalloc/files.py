"""Files: written whole or not at all; read as JSON and JSON lines, with errors that say where."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import re
import secrets
import stat
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

MOST_LINE = 64 << 20  # bytes of one JSON line: a .gz of a MiB may hold a line of a GiB
_ABANDONED_S = 3600.0  # no write takes an hour: a part that is older was left by a killed process
_LONE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # how JSON may hold half of a character


def replace_text(path: str | Path, text: str, *, folders: bool = True) -> None:
    """Writes UTF-8 text as `replace_bytes` does. folders: make those that are missing.

    Raises ValueError for a text that UTF-8 has no bytes for, with the file as it was.
    """
    data = encoded(text, str(path))
    if folders:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    replace_bytes(path, data)


def replace_bytes(path: str | Path, data: bytes) -> None:
    """Writes a file, whole or not at all, on disk when it returns.

    It goes by way of a fresh file beside it, so a reader sees the old contents or the new ones. What is no ordinary
    file (a pipe, /dev/stdout) is written as it is.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    _remove_abandoned(path)
    part = path.with_name(f"{_part_of(path)}{secrets.token_hex(8)}.part")
    # O_EXCL follows no link and opens nothing that was there before.
    number = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with open(number, "wb") as file:
            if path.exists():
                os.fchmod(number, stat.S_IMODE(path.stat().st_mode))
            file.write(data)
            file.flush()
            os.fsync(number)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Alone among all that lock this file, on this machine or on others that share the file system; waits for them."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def refuse_other(path: str | Path, start: str) -> None:
    """ValueError for a file that is there and does not begin so: somebody else's, which would be written over."""
    if Path(path).is_file() and not Path(path).read_bytes().startswith(start.encode()):
        raise ValueError(f"{path} would be written over, and does not begin with {start!r}: take another folder")


LOCK = ".lock"


def lock_folder(folder: Path, owner: object) -> Callable[[], object]:
    """Locks a folder for one writer, until what this gives is called, or `owner` or its process ends. ValueError where
    another one writes there."""
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise ValueError(f"another run writes to {folder}: wait for it, or take another folder") from error
    return weakref.finalize(owner, os.close, lock)


def _part_of(path: Path) -> str:
    return f".{path.name[:50]}."  # at most 200 bytes: a name may have 255


def _remove_abandoned(path: Path) -> None:
    """Parts of this file that killed processes left."""
    name = re.compile(re.escape(_part_of(path)) + r"[0-9a-f]{16}\.part")
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if name.fullmatch(entry.name) and time.time() - entry.stat(follow_symlinks=False).st_mtime > _ABANDONED_S:
                os.unlink(entry.path)


def encoded(text: str, name: str) -> bytes:
    """A text as UTF-8. name: what the error calls it; ValueError where half of a surrogate pair stands alone."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}: character {error.start} is U+{ord(text[error.start]):04X}, half of a surrogate pair, which no"
            " UTF-8 text can hold"
        ) from None


def read_text(path: str | Path) -> str:
    """A UTF-8 text; ValueError that names the file where it is none, OSError where it cannot be read."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error


# ---- JSON ----

Json: TypeAlias = Mapping[str, object]  # an object of which no more is said


def parse_json(data: str | bytes, name: str) -> Any:
    """A JSON text. name: what the error calls it. Raises ValueError for anything else, nested too deep included, and
    for strings with half of a surrogate pair."""
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        value = json.loads(text)
        spelled = json.dumps(value, ensure_ascii=False) if _LONE_SURROGATE.search(text) else ""
    except RecursionError:
        raise ValueError(f"{name}: nested too deep for JSON") from None
    except ValueError as error:  # neither text nor JSON
        raise ValueError(f"{name}: not JSON, {error}") from None
    encoded(spelled, name)
    return value


def read_json(path: str | Path, kind: str) -> Any:
    """What a JSON file says. kind: what it should be; ValueError if it is no JSON, OSError if it cannot be read."""
    data = Path(path).read_bytes()
    try:
        return parse_json(data, "its text")
    except ValueError as error:
        raise ValueError(f"{path} is not a {kind}: {error}") from error


def read_saved(path: str | Path, kind: str, schema: int) -> dict[str, object]:
    """A JSON object that says of which schema it is. kind: what it should be; ValueError if it is none."""
    data = read_json(path, kind)
    if not isinstance(data, dict) or data.get("schema") != schema:
        got = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"{path} is not a {kind} of schema {schema}, got {got!r}")
    return data


def json_lines(path: str | Path | Traversable, *, torn: bool = False) -> Iterator[tuple[str, Any]]:
    """(where, value) of each line of a JSON-lines file that is not blank, .gz or not. where: "FILE:LINE", for errors.
    torn: leave out a last line without a line feed.

    Lines end with a line feed alone: others of Unicode's line ends may stand in a JSON string. Raises ValueError naming
    the line that is no JSON or longer than `MOST_LINE`, or the file that is damaged; OSError if it cannot be read.
    """
    with _opened(path) as file:
        number = 0
        while True:
            number += 1
            where = f"{path}:{number}"
            try:
                line = file.readline(MOST_LINE + 1)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise ValueError(f"{where}: the file is damaged ({error})") from error
            if not line or (torn and len(line) <= MOST_LINE and not line.endswith(b"\n")):
                return
            if len(line) > MOST_LINE:
                raise ValueError(f"{where}: the line is longer than {MOST_LINE >> 20} MiB")
            if line.strip():
                yield where, parse_json(line, where)


def _opened(path: str | Path | Traversable) -> IO[bytes]:
    if isinstance(path, str):
        path = Path(path)
    if isinstance(path, Path) and path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    return path.open("rb")


# ---- text for a terminal ----

_INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """A text from a file or a model for a terminal: control characters, which could move the cursor, retitle the window
    or turn the line around, are spelled out. Line feeds and tabs stay."""
    return _INVISIBLE.sub(lambda x: f"\\x{ord(x[0]):02x}" if ord(x[0]) < 256 else f"\\u{ord(x[0]):04x}", text)


def cache_folder(name: str) -> Path:
    """$XDG_CACHE_HOME/reasonalloc/NAME, else ~/.cache/reasonalloc/NAME."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "reasonalloc" / name
