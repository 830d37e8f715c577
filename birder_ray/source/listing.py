"""From a source as the user wrote it to its shards: formats detected, names unique, nothing read but footers."""

import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from itertools import islice, takewhile

import pyarrow as pa

from birder_ray.config import SourceConfig
from birder_ray.errors import ConfigError
from birder_ray.source import manifest, parquet
from birder_ray.source.base import IMAGE_SUFFIXES, Shard, fingerprint
from birder_ray.source.fetch import prefetch
from birder_ray.source.find import File, Found, find, of_files
from birder_ray.storage import has_suffix, redact

_SUFFIXES = {
    "images": IMAGE_SUFFIXES,
    "tar": (".tar", ".tar.gz", ".tgz"),
    "parquet": (".parquet",),
    "manifest": (".csv", ".csv.gz"),
}
_COUNTED_SHARDS = 256
_SCHEMA_SHARDS = 16
_COUNTED_CSV_BYTES = 64 << 20


def list_shards(config: SourceConfig) -> list[Shard]:
    """Shards of every URI of the source, sorted by name. A file given twice is one shard.

    Raises:
        ConfigError: a URI names nothing that can be scored, or may not be read; or a column is missing.
    """
    inventory = _Inventory()
    for uri in config.uri:
        inventory.add(uri, config)
    shards = _examined(inventory.shards(), config)
    for name, times in Counter(shard.name for shard in shards).items():
        if times > 1:
            raise ConfigError(f"{times} inputs have the same name {name}; score them one by one")
    return shards


@dataclass
class _Inventory:
    """What the sources hold: `files` by URI, `folders` of images, and `photos` given one by one, by their folder."""

    roots: set[str] = field(default_factory=set)
    files: dict[str, Shard] = field(default_factory=dict)
    folders: dict[str, Shard] = field(default_factory=dict)
    photos: dict[str, dict[str, File]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, uri: str, config: SourceConfig) -> None:
        """Add what one source names."""
        kinds: set[str] = set()
        tables: dict[str, Shard] = {}
        for found in find(uri, config.options):
            self.roots.add(found.root)
            for kind, files in _by_kind(found, config.format).items():
                kinds.add(kind)
                if kind == "manifest":
                    tables |= _file_shards(files, kind)
                elif kind != "images":
                    self.files |= _file_shards(files, kind)
                elif found.whole:
                    self.folders[found.folder] = _folder_shard(found.folder, files, None)
                else:
                    self.photos[found.folder] |= files
        if not kinds:
            what = "images, tars, Parquet files or CSV manifests" if config.format == "auto" else config.format
            raise ConfigError(f"{redact(uri)}: holds no {what}; check the path, or name the format with --format")
        if kinds == {"manifest"}:
            self.files |= tables
        elif len(kinds - {"manifest"}) > 1:  # a CSV next to images is their metadata
            mixed = ", ".join(sorted(kinds - {"manifest"}))
            raise ConfigError(f"{redact(uri)}: holds files of several formats ({mixed}); choose one with --format")

    def shards(self) -> list[Shard]:
        """All shards under their final names, sorted."""
        given = [
            _folder_shard(folder, files, tuple(files))
            for folder, files in self.photos.items()
            if folder not in self.folders
        ]
        roots = zip(*(redact(root).rstrip("/").split("/") for root in self.roots), strict=False)
        common = sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, roots))
        named = []
        for shard in [*self.files.values(), *self.folders.values(), *given]:
            parts = redact(shard.uri).rstrip("/").split("/")[common:]
            named.append(replace(shard, name="/".join(part for part in parts if part)))
        try:
            return sorted(named, key=lambda shard: shard.name.encode())
        except UnicodeEncodeError as error:
            raise ConfigError(f"{error.object!r}: the name is not UTF-8; rename it") from None


def _by_kind(found: Found, format_: str) -> dict[str, dict[str, File]]:
    kinds: dict[str, dict[str, File]] = defaultdict(dict)
    for name, file in found.files.items():
        kind = next((kind for kind, suffixes in _SUFFIXES.items() if has_suffix(file.uri, *suffixes)), None)
        if format_ != "auto":
            if (kind is None and not found.whole) or (kind, format_) == ("parquet", "manifest"):
                kind = format_
            kind = kind if kind == format_ else None
        if kind:
            kinds[kind][name] = file
    return kinds


def _file_shards(files: dict[str, File], kind: str) -> dict[str, Shard]:
    return {
        uri: Shard(uri, "", kind, fingerprint(size, version), size, version=version)
        for uri, size, version in files.values()
    }


def _folder_shard(folder: str, files: dict[str, File], members: tuple[str, ...] | None) -> Shard:
    size = sum(file.size or 0 for file in files.values())
    return Shard(folder, "", "images", of_files(files), size, len(files), members and tuple(sorted(members)))


def _examined(shards: list[Shard], config: SourceConfig) -> list[Shard]:
    """Tells Parquet with images from Parquet manifests, checks column names, counts rows where that is cheap."""
    sheets = [shard for shard in shards if shard.format == "manifest" and not manifest.is_parquet(shard)]
    better = {shard.uri: _counted(shard, config) for shard in sheets[:_COUNTED_SHARDS]}
    parquets = [shard for shard in shards if shard.format in ("parquet", "manifest") and shard not in sheets]
    if parquets:
        looked_at = parquets if len(parquets) <= _COUNTED_SHARDS else parquets[:_SCHEMA_SHARDS]
        footers = prefetch(lambda shard: (shard.uri, parquet.footer(shard, config)), looked_at)
        readable = {uri: footer for uri, footer in footers if footer}
        format_ = "manifest" if config.format == "manifest" else "parquet"
        for uri, footer in islice(readable.items(), 1):
            format_ = _table_format(footer.schema.to_arrow_schema(), config, redact(uri))
        counts = {uri: footer.num_rows for uri, footer in readable.items()}
        better |= {shard.uri: replace(shard, format=format_, count=counts.get(shard.uri)) for shard in parquets}
    return [better.get(shard.uri, shard) for shard in shards]


def _table_format(schema: pa.Schema, config: SourceConfig, where: str) -> str:
    if config.format != "manifest":
        if parquet.image_column(schema, config):
            parquet.label_column(schema.names, config, where)
            return "parquet"
        if config.format == "parquet":
            named = f" named {config.image_column}" if config.image_column else ""
            found = ", ".join(schema.names)
            raise ConfigError(f"{where}: no column of image bytes{named}; check image_column, the columns are {found}")
    manifest.columns(schema.names, config, where)
    return "manifest"


def _counted(sheet: Shard, config: SourceConfig) -> Shard:
    try:
        manifest.check(sheet, config)
        if sheet.size is None or sheet.size > _COUNTED_CSV_BYTES:
            return sheet
        return replace(sheet, count=manifest.count(sheet, config, sys.maxsize))
    except ConfigError:
        raise
    except Exception:
        return sheet  # reading it will say why
