"""Fetches the published sources and benchmarks, to where the recipes in configs/data read them.

  python tools/download_sources.py --list
  python tools/download_sources.py gsm8k tal_scq5k
  python tools/download_sources.py --training --from FOLDER      # files that are here already

Without a name: all of them. What is there already is checked and not fetched again; what broke off
is continued. Every file is compared with the size and SHA-256 in tools/sources.yaml, or, where it
has none, with those of the first download, which stand in OUTPUT/sources.lock.json. HF_ENDPOINT
names a mirror of the Hugging Face hub, --base-url a server with a copy of OUTPUT.
"""

import argparse
import fcntl
import gzip
import hashlib
import os
import shutil
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote

from http_download import DEFAULT_PATIENCE, OnProgress, Patience, discard, download
from pydantic import AfterValidator, Field, PositiveInt, model_validator

from dsm_engine.cli.terminal import ProgressLine
from dsm_engine.errors import DsmError
from dsm_engine.files import atomic_file, fsync_folder, make_folder, read_json, write_json
from dsm_engine.recipes import Section, load_recipe, nearest

CATALOGUE = Path(__file__).parent / "sources.yaml"
LOCK_NAME = "sources.lock.json"
_HUB = "https://huggingface.co"
_CHUNK_BYTES = 1 << 20


def _inside(path: str) -> str:
    parts = path.split("/")
    if any(not part or part.startswith(".") for part in parts) or "\\" in path:
        raise ValueError("is not a plain path below the target folder")
    return path


def _address(url: str) -> str:
    if not url.startswith(("https://", "http://")):
        raise ValueError("is not an address of http or https")
    return url.rstrip("/")


PathBelow = Annotated[str, AfterValidator(_inside)]
Address = Annotated[str, AfterValidator(_address)]


class RemoteFile(Section):
    """One file of a source."""

    remote: PathBelow
    """Its path below the source's address."""
    path: PathBelow
    """Its path below the target folder."""
    bytes: PositiveInt | None = None
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """Null where it is not known; then the first download is what later ones are compared with."""
    members: dict[PathBelow, str] = Field(default_factory=dict)
    """Of a zip archive: what is taken out of it, by the path below the target folder."""
    unverified: str = ""
    """What of the address is inferred, not known."""


class Source(Section):
    """A published data set, or the part of one that has one use."""

    kind: Literal["training", "benchmark"]
    licence: str
    note: str = ""
    """What else there is to know about the licence or the files."""
    restricted: bool = False
    """Some of it may not be used freely: fetched with --accept-restricted only."""
    homepage: Address
    address: Address
    """The folder, at a fixed revision, that the files are below."""
    reader: str | None = None
    """The reader of dsm preprocess for its files."""
    files: list[RemoteFile] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_read(self) -> Self:
        if self.kind == "training" and self.reader is None:
            raise ValueError("a source of training data names its reader")
        return self


class Catalogue(Section):
    """The sources by name."""

    sources: dict[str, Source]

    @model_validator(mode="after")
    def _paths_are_of_one_file(self) -> Self:
        paths = [
            path
            for source in self.sources.values()
            for file in source.files
            for path in (file.path, *file.members)
        ]
        twice = {path for path in paths if paths.count(path) > 1}
        if twice:
            raise ValueError(f"two files are to be at {', '.join(sorted(twice))}")
        return self


@dataclass(frozen=True)
class Places:
    """Where files come from and go to."""

    output: Path
    folder: Path | None = None
    """Of files that are here already; nothing is fetched then."""
    base_url: str | None = None
    """A server that has the files under their paths below the target folder."""
    hub: str = _HUB

    def url(self, source: Source, file: RemoteFile) -> str:
        """The address the file is fetched from."""
        if self.base_url is not None:
            return f"{self.base_url}/{quote(file.path)}"
        published = published_url(source, file)
        if published.startswith(f"{_HUB}/"):
            return self.hub + published.removeprefix(_HUB)
        return published


class Lock:
    """What was obtained: OUTPUT/sources.lock.json, from paths to records.

    `url` is the publisher's address, which says what the file is; `from` is where it was had: that
    address, one of a mirror, or a path; null where it was there before. `bytes` and `sha256` are
    the file's own.
    """

    def __init__(self, output: Path) -> None:
        self._path = output / LOCK_NAME
        records = read_json(self._path) if self._path.exists() else {}
        if not isinstance(records, dict) or not all(
            isinstance(record, dict) for record in records.values()
        ):
            raise DsmError(f"{self._path}: is not a record of downloads; move it away")
        self._records: dict[str, dict[str, Any]] = records

    def sha256(self, path: str, url: str) -> str | None:
        """Of the file that was obtained before as what is published at `url`."""
        record = self._records.get(path, {})
        return record.get("sha256") if record.get("url") == url else None

    def record(self, path: str, url: str, origin: str | None, num_bytes: int, sha256: str) -> None:
        """Remembers a file; written at once. Without an origin, that of the same file is kept."""
        before = self._records.get(path, {})
        if origin is None and (before.get("url"), before.get("sha256")) == (url, sha256):
            origin = before.get("from")
        record = {"url": url, "from": origin, "bytes": num_bytes, "sha256": sha256}
        if before != record:
            self._records[path] = record
            write_json(self._path, dict(sorted(self._records.items())))


@dataclass(frozen=True)
class Expected:
    """What a file is compared with."""

    bytes: int | None
    sha256: str | None
    by: str
    """Who says so."""

    def check(self, path: Path, name: str) -> str:
        """The SHA-256 of the file at `path`. Raises DsmError where it is another file."""
        num_bytes = path.stat().st_size
        if self.bytes is not None and num_bytes != self.bytes:
            raise DsmError(f"{name}: is {num_bytes:,} bytes, {self.by} has {self.bytes:,}")
        digest = file_sha256(path)
        if self.sha256 is not None and digest != self.sha256:
            raise DsmError(f"{name}: its SHA-256 is {digest}, {self.by} has {self.sha256}")
        return digest


def published_url(source: Source, file: RemoteFile) -> str:
    """The publisher's address of the file."""
    return f"{source.address}/{quote(file.remote)}"


def file_sha256(path: Path) -> str:
    """The SHA-256 of the file's bytes, in hexadecimal digits."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DsmError(f"{path}: cannot be read: {error.strerror or error}") from error


def load_catalogue(path: Path = CATALOGUE) -> Catalogue:
    """The catalogue, checked."""
    return load_recipe(path, [], Catalogue)


def obtain_file(
    source: Source,
    file: RemoteFile,
    places: Places,
    lock: Lock,
    patience: Patience = DEFAULT_PATIENCE,
    on_progress: OnProgress = lambda done, total: None,
) -> str:
    """Puts one file, and what is taken out of it, where it belongs; returns what was done.

    Nothing is under a final name that is not whole and checked. Raises DsmError, also where
    another file stands under a final name: that is left alone.
    """
    url = published_url(source, file)
    target = places.output / file.path
    by_lock = lock.sha256(file.path, url)
    if file.sha256 is None and by_lock is not None:
        expected = Expected(file.bytes, by_lock, f"{LOCK_NAME}, from an earlier download,")
    else:
        expected = Expected(file.bytes, file.sha256, CATALOGUE.name)
    if target.exists():
        done, origin, digest = "is there", None, _check_present(target, expected)
    else:
        make_folder(target.parent)
        part = target.with_name(f".{target.name}.part")
        if places.folder is not None:
            origin, digest = _copy(places.folder, file, part, expected)
            done = f"copied from {origin}"
        else:
            origin = places.url(source, file)
            digest = _fetch(origin, part, expected, patience, on_progress)
            done = "fetched"
        _publish(part, target)
    if expected.sha256 is None:
        done += ", SHA-256 not known before"
    lock.record(file.path, url, origin, target.stat().st_size, digest)
    for path in file.members:
        _take_out(file, path, places.output, url, lock)
    return f"{done}: {target.stat().st_size:,} bytes, SHA-256 {digest}"


def _check_present(target: Path, expected: Expected) -> str:
    try:
        return expected.check(target, str(target))
    except DsmError as error:
        raise DsmError(f"{error}; move it away to have it fetched") from error


def _fetch(
    url: str, part: Path, expected: Expected, patience: Patience, on_progress: OnProgress
) -> str:
    while True:
        continued = download(
            url, part, num_bytes=expected.bytes, patience=patience, on_progress=on_progress
        )
        try:
            return expected.check(part, url)
        except DsmError:
            discard(part)
            if not continued:  # what was there before may have been damaged
                raise


def _copy(folder: Path, file: RemoteFile, part: Path, expected: Expected) -> tuple[str, str]:
    found = _candidates(folder, file)
    if not found:
        raise DsmError(f"{folder}: has no {file.path}, by path or name, with or without .gz")
    if expected.sha256 is None and len(found) > 1:
        raise DsmError(
            f"{folder}: {', '.join(map(str, found))} could each be {file.path}; put the right one"
            f" at {folder / file.path}"
        )
    faults = []
    for path in found:
        try:
            _copy_contents(path, part, decompress=not file.path.endswith(".gz"))
            return str(path), expected.check(part, str(path))
        except DsmError as error:
            discard(part)
            faults.append(str(error))
    if len(faults) == 1:
        raise DsmError(faults[0])
    raise DsmError(
        f"{folder}: none of the {len(found)} files with the name of {file.path} is the one"
        f" {expected.by} has; the first, {faults[0]}"
    )


def _candidates(folder: Path, file: RemoteFile) -> list[Path]:
    """Files that may be the one: by its paths, else by its names anywhere below the folder."""
    if not folder.is_dir():
        raise DsmError(f"{folder}: is no folder")
    paths = (file.path, file.remote)
    exact = [
        folder / f"{path}{suffix}"
        for path in paths
        for suffix in ("", ".gz")
        if (folder / f"{path}{suffix}").is_file()
    ]
    if exact and file.sha256 is None:
        return exact[:1]
    bare = (*(PurePosixPath(path).name for path in paths), file.remote.replace("/", "__"))
    names = {f"{name}{suffix}" for name in bare for suffix in ("", ".gz")}
    named = sorted(path for path in folder.rglob("*") if path.name in names and path.is_file())
    return list(dict.fromkeys([*exact, *named]))


def _copy_contents(path: Path, part: Path, *, decompress: bool) -> None:
    discard(part)
    try:
        with path.open("rb") as file, part.open("wb") as copy:
            zipped = decompress and path.suffix == ".gz"
            shutil.copyfileobj(gzip.GzipFile(fileobj=file) if zipped else file, copy, _CHUNK_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DsmError(f"{path}: cannot be copied to {part}: {reason}") from error


def _take_out(file: RemoteFile, path: str, output: Path, url: str, lock: Lock) -> None:
    """Takes the member that belongs at `path` out of an archive, or checks what stands there."""
    archive, target, member = output / file.path, output / path, file.members[path]
    url, origin = f"{url}!{member}", None
    try:
        with zipfile.ZipFile(archive) as opened:
            if member not in opened.namelist():
                hint = nearest(member, opened.namelist())
                raise DsmError(f"{archive}: has no {member} {hint}")
            entry = opened.getinfo(member)
            if target.exists():
                _check_taken_out(target, archive, entry)
                _check_present(target, Expected(None, lock.sha256(path, url), LOCK_NAME))
            else:
                origin = file.path
                with opened.open(entry) as contents, atomic_file(target) as copy:
                    shutil.copyfileobj(contents, copy, _CHUNK_BYTES)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
        raise DsmError(f"{archive}: {member} cannot be taken out: {error}") from error
    lock.record(path, url, origin, target.stat().st_size, file_sha256(target))


def _check_taken_out(target: Path, archive: Path, entry: zipfile.ZipInfo) -> None:
    found = target.stat().st_size, _crc32(target)
    if found != (entry.file_size, entry.CRC):
        raise DsmError(
            f"{target}: is {found[0]:,} bytes with CRC-32 {found[1]:08x}, {archive} has"
            f" {entry.file_size:,} with {entry.CRC:08x}; move it away to have it taken out"
        )


def _crc32(path: Path) -> int:
    crc = 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                crc = zlib.crc32(chunk, crc)
    except OSError as error:
        raise DsmError(f"{path}: cannot be read: {error.strerror or error}") from error
    return crc


def _publish(part: Path, target: Path) -> None:
    try:
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(target)
        fsync_folder(target.parent)
    except OSError as error:
        raise DsmError(f"{target}: cannot be written: {error.strerror or error}") from error


def obtain_sources(
    names: Sequence[str],
    catalogue: Catalogue,
    places: Places,
    *,
    accept_restricted: bool = False,
    patience: Patience = DEFAULT_PATIENCE,
) -> list[str]:
    """Obtains every file of the sources, printing what is done; returns the faults, one a file."""
    faults: list[str] = []
    with _alone(places.output):
        lock = Lock(places.output)
        for name in names:
            source = catalogue.sources[name]
            print(describe(name, source))
            if source.restricted and not accept_restricted:
                faults.append(f"{name}: {source.note}; add --accept-restricted to have it fetched")
                continue
            for file in source.files:
                try:
                    with ProgressLine(file.path) as progress:
                        done = obtain_file(
                            source,
                            file,
                            places,
                            lock,
                            patience,
                            lambda done, total, bar=progress: bar.update(done, total or done),
                        )
                    print(f"  {file.path} {done}")
                except DsmError as error:
                    published = places.folder is None and places.base_url is None
                    inferred = file.unverified if published else ""
                    hint = f" (unverified: {inferred})" if inferred else ""
                    faults.append(f"{name}: {error}{hint}")
    return faults


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Keeps a second run out of the folder, so that no part has two writers."""
    make_folder(output)
    path = output / ".download.lock"
    with ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("w"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DsmError(f"{output}: another download is writing here; wait for it") from error
        except OSError as error:
            raise DsmError(f"{path}: cannot be locked: {error.strerror or error}") from error
        yield


def describe(name: str, source: Source) -> str:
    """One line about a source: use, licence, size, reader."""
    sizes = [file.bytes for file in source.files]
    known = sum(size for size in sizes if size is not None)
    size = f"{known:,} bytes" if known else "size not known"
    if known and None in sizes:
        size += f" and {_count(sizes.count(None))} of unknown size"
    reader = f", reader {source.reader}" if source.reader else ""
    note = f" ({source.note})" if source.note else ""
    files = _count(len(sizes))
    return f"{name}: {source.kind}, {source.licence}{note}, {files}, {size}{reader}"


def _count(num_files: int) -> str:
    return f"{num_files} file{'s' if num_files > 1 else ''}"


def chosen(names: Sequence[str], kind: str | None, catalogue: Catalogue) -> list[str]:
    """The names asked for, or all of the kind. Raises DsmError that names the nearest."""
    known = list(catalogue.sources)
    for name in names:
        if name not in known:
            raise DsmError(f"unknown source {name!r} {nearest(name, known)}")
    if names and kind is not None:
        raise DsmError("name sources, or ask for all of a kind, not both")
    if names:
        return list(dict.fromkeys(names))
    return [name for name in known if kind in (None, catalogue.sources[name].kind)]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool and returns its exit code: 2 where something could not be had."""
    arguments = _parser().parse_args(argv)
    try:
        catalogue = load_catalogue()
        names = chosen(arguments.names, arguments.kind, catalogue)
        if arguments.list:
            print("\n".join(describe(name, catalogue.sources[name]) for name in names))
            return 0
        places = Places(
            arguments.output,
            arguments.folder,
            _server(arguments.base_url, "--base-url"),
            _server(os.environ.get("HF_ENDPOINT"), "HF_ENDPOINT") or _HUB,
        )
        faults = obtain_sources(
            names, catalogue, places, accept_restricted=arguments.accept_restricted
        )
    except DsmError as error:
        faults = [str(error)]
    except KeyboardInterrupt:
        print("download_sources: interrupted; run again to continue", file=sys.stderr)
        return 130
    for fault in faults:
        print(f"download_sources: error: {fault}", file=sys.stderr)
    return 2 if faults else 0


def _server(url: str | None, name: str) -> str | None:
    if not url:
        return None
    try:
        return _address(url)
    except ValueError as error:
        raise DsmError(f"{name} {url!r} {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="sources; all where none is named")
    kinds = parser.add_mutually_exclusive_group()
    for option, kind in (("--training", "training"), ("--benchmarks", "benchmark")):
        kinds.add_argument(
            option, dest="kind", action="store_const", const=kind, help=f"all of kind {kind}"
        )
    parser.add_argument("--list", action="store_true", help="what there is, and stop")
    parser.add_argument("--output", type=Path, default=Path("data/sources"), help="(data/sources)")
    parser.add_argument(
        "--from",
        dest="folder",
        type=Path,
        help="take the files from this folder, by path or name, also with .gz; fetch nothing",
    )
    parser.add_argument("--base-url", help="a server that has the files by their paths in OUTPUT")
    parser.add_argument(
        "--accept-restricted",
        action="store_true",
        help="fetch also what may not be used freely; --list says why",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
