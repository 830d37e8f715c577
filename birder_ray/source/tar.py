"""WebDataset tars, streamed from the start: consecutive members of one key are a sample."""

import gzip
import json
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import IO, Any, cast

from birder_ray.chunk import Sample
from birder_ray.config import SourceConfig
from birder_ray.errors import SampleError, ShardDamaged
from birder_ray.source.base import IMAGE_SUFFIXES, MAX_BYTES, SEQUENTIAL, Item, Shard, Wanted, count_intact, hidden
from birder_ray.storage import has_suffix, open_binary, redact

_STREAM_DAMAGE = (tarfile.ReadError, tarfile.StreamError, EOFError, gzip.BadGzipFile, zlib.error)
_DAMAGE = (ShardDamaged, *_STREAM_DAMAGE)
_NAME_HEADERS = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE
)  # fmt: skip
_LONGEST_NAME = 1 << 20
_LABEL_SUFFIXES = (".cls", ".json", ".txt")


@dataclass(frozen=True)
class _Member:
    """A regular file of the tar. `suffix` starts at the first dot of the file name; `data` of images and labels, or why
    there is none."""

    name: str
    key: str
    suffix: str
    data: bytes | SampleError


def read(shard: Shard, config: SourceConfig, start: int, wanted: Wanted) -> Iterator[Item]:
    """See `Format`.

    Every image of a group is a sample, so that a tar of plain photos loses none; but next to `key.jpg`, images with
    a longer suffix (`key.mask.png`) are not.
    """
    for sample, data in _samples(shard, config):
        if sample.index >= start and wanted(sample.index):
            yield sample, data or SampleError("EmptyFile", "the tar member has no bytes")


def count(shard: Shard, config: SourceConfig, at_most: int) -> int:
    """See `Format`. Samples before any damage count."""
    return count_intact(_samples(shard, config), at_most)


def _samples(shard: Shard, config: SourceConfig) -> Iterator[Item]:
    index = 0
    seen: set[str] = set()
    uri = redact(shard.uri)
    broken: list[Exception] = []
    with _opened(shard, config) as tar:
        for _, members in groupby(_until_broken(tar, broken), key=lambda member: member.key):
            group = list(members)
            label = _label(group, config.label_column)
            images = [member for member in group if member.suffix in IMAGE_SUFFIXES]
            for member in images or [member for member in group if member.suffix.endswith(IMAGE_SUFFIXES)]:
                name = member.name.removeprefix("./").rpartition(".")[0]
                while name in seen:
                    name = f"{name}#{index}"
                seen.add(name)
                yield Sample(f"{shard.name}/{name}", index, label, f"{uri}#{member.name}"), member.data
                index += 1
        if broken:
            raise broken[0]


def _until_broken(tar: tarfile.TarFile, broken: list[Exception]) -> Iterator[_Member]:
    """The members before any damage, which goes to `broken`: an image that was read to its end is a sample, even where
    nobody can tell any more whether its label would have followed."""
    try:
        yield from _members(tar)
    except _DAMAGE as error:
        broken.append(error)


def _members(tar: tarfile.TarFile) -> Iterator[_Member]:
    for member in iter(tar.next, None):
        tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header it has met
        folder, slash, file = member.name.rpartition("/")
        stem, dot, extension = file.partition(".")
        suffix = dot + extension.lower()
        if member.isreg() and suffix and not hidden(member.name):
            used = suffix in _LABEL_SUFFIXES or suffix.endswith(IMAGE_SUFFIXES)
            data: bytes | SampleError = b""
            if used and member.issparse():
                data = SampleError("TooLarge", "a tar member with holes, which may be read as terabytes of zeros")
            elif used and member.size > MAX_BYTES:
                data = SampleError("TooLarge", f"a tar member of {member.size:,} bytes")
            elif used:
                data = cast(IO[bytes], tar.extractfile(member)).read()
            yield _Member(member.name, folder + slash + stem, suffix, data)
        _step_over(tar)


def _step_over(tar: tarfile.TarFile) -> None:
    """Go to the next header. tarfile does that too, but goes on past the end of the stream, for exabytes if told so."""
    stream = cast(IO[bytes], tar.fileobj)
    while (left := tar.offset - 1 - stream.tell()) > 0:
        if not stream.read(min(left, 1 << 20)):
            raise tarfile.ReadError("unexpected end of data")


def _label(group: list[_Member], column: str | None) -> str | None:
    texts = {
        member.suffix: member.data.decode(errors="replace").strip()
        for member in reversed(group)
        if member.suffix in _LABEL_SUFFIXES and isinstance(member.data, bytes)
    }
    if column is None and ".cls" in texts:
        return texts[".cls"]
    try:
        fields = json.loads(texts.get(".json", "{}"))
    except ValueError:
        fields = {}
    for name in (column,) if column else ("label", "cls"):
        value = fields.get(name) if isinstance(fields, dict) else None
        if value is not None:
            return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return None if column else texts.get(".txt")


class _Header(tarfile.TarInfo):
    """A header that tells the end of a tar from damage; tarfile alone ends in silence at both."""

    def _proc_member(self, tarfile_: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size < 0:
            raise ShardDamaged("DamagedTar", f"a member of {self.size:,} bytes in the header at byte {self.offset}")
        if self.type in _NAME_HEADERS and self.size > _LONGEST_NAME:  # tarfile reads these whole, whatever they claim
            raise ShardDamaged("DamagedTar", f"a name of {self.size:,} bytes in the header at byte {self.offset}")
        return cast(tarfile.TarInfo, super()._proc_member(tarfile_))  # type: ignore[misc]

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_Header":
        stream = cast(IO[bytes], tarfile_.fileobj)
        offset = stream.tell()
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            while block := stream.read(tarfile.BLOCKSIZE):
                if block.strip(b"\0"):
                    at = stream.tell() - len(block)
                    raise ShardDamaged("DamagedTar", f"zeros at byte {offset}, and data again at byte {at}") from None
            raise
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            if offset == 0:
                raise ShardDamaged("EmptyFile", "the tar has no bytes") from None
            raise ShardDamaged("TruncatedTar", f"ends at byte {offset} without an end-of-archive mark") from None
        except tarfile.TruncatedHeaderError:  # type: ignore[attr-defined]
            raise ShardDamaged("TruncatedTar", f"ends in the header at byte {offset}") from None
        except tarfile.HeaderError as error:
            raise ShardDamaged("DamagedTar", f"{error} in the header at byte {offset}") from None


@contextmanager
def _opened(shard: Shard, config: SourceConfig) -> Iterator[tarfile.TarFile]:
    with open_binary(shard.uri, config.options, **SEQUENTIAL) as file:
        stream: Any = gzip.GzipFile(fileobj=file) if has_suffix(shard.uri, "gz") else file
        try:
            with tarfile.open(
                fileobj=stream, mode="r|", bufsize=1 << 16, tarinfo=_Header, encoding="utf-8", errors="backslashreplace"
            ) as tar:
                yield tar
        except _STREAM_DAMAGE as error:
            cut = isinstance(error, EOFError) or str(error) == "unexpected end of data"
            message = f"{error}, at byte {file.tell()} of the file"
            raise ShardDamaged("TruncatedTar" if cut else "DamagedTar", message) from None
