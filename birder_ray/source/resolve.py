"""From a URI in a manifest to a file on a filesystem."""

import posixpath
from urllib.parse import urljoin, urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from birder_ray.config import StorageOptions
from birder_ray.errors import SampleError
from birder_ray.storage import filesystem, is_local

Place = tuple[fsspec.AbstractFileSystem, str]

_REMOTE_PROTOCOLS = {"http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf"}
_REFUSED = "a remote manifest may not name local files; --allow-local-uris would allow it"


class Resolver:
    """Resolves the URIs of one manifest; relative ones start from its folder.

    A manifest from elsewhere may not reach into this machine or its network, nor see the options (they may hold
    credentials) sent to another store than its own. A local manifest may name anything, and the options are for
    whatever it names. Where a web server redirects to is nobody's word: into this machine's network only to hosts that
    the user named, by a local manifest or as the place of a remote one.

    Args:
        manifest: its URI. options: fsspec's. allow_local: a remote manifest is trusted like a local one.
    """

    def __init__(self, manifest: str, options: StorageOptions, allow_local: bool = False):
        self._manifest = manifest
        self._options = options
        self._local = is_local(manifest)
        self._trusted = self._local or allow_local
        self._allow_local = allow_local
        self._named = {urlsplit(manifest).hostname or ""}
        self._web: dict[bool, fsspec.AbstractFileSystem] = {}

    def __call__(self, uri: str) -> Place | SampleError:
        if "::" in uri:
            return SampleError("BadUri", "chained URLs (::) are not allowed in a manifest")
        if "\0" in uri:
            return SampleError("BadUri", "the URI holds a NUL character")
        try:
            if "://" not in uri:
                if uri.startswith(("/", "~")) and not self._trusted:
                    return SampleError("LocalUriRefused", _REFUSED)
                if not (uri.startswith(("/", "~")) and self._allow_local):
                    uri = self._absolute(uri)
            return self._place(uri)
        except Exception as error:  # whatever the filesystem makes of a malformed URL
            return SampleError("BadUri", f"{type(error).__name__}: {error}")

    def _place(self, uri: str) -> Place | SampleError:
        protocol = urlsplit(uri).scheme
        own = _store(uri) == _store(self._manifest)
        if not self._trusted:
            if protocol in ("file", "local"):
                return SampleError("LocalUriRefused", _REFUSED)
            if protocol not in _REMOTE_PROTOCOLS and protocol != urlsplit(self._manifest).scheme:
                return SampleError("BadUri", f"{protocol}:// is not allowed in a remote manifest")
        options = self._options if own or self._local else None
        if protocol in ("http", "https") and not self._allow_local:
            return self._guarded(uri, options)
        place = filesystem(uri, options)
        if isinstance(place[0], LocalFileSystem) and not self._trusted:
            return SampleError("LocalUriRefused", _REFUSED)  # by a spelling that only fsspec understands
        return place

    def _guarded(self, uri: str, options: StorageOptions | None) -> Place:
        from birder_ray.source.web import guarded  # aiohttp is not needed before

        if self._local:
            self._named.add(urlsplit(uri).hostname or "")
        web = self._web.get(options is None)
        if web is None:
            web = self._web[options is None] = guarded(self._named, dict(options or {}))
        return web, uri

    def _absolute(self, uri: str) -> str:
        if self._manifest.startswith(("http://", "https://")):
            return urljoin(self._manifest, uri)
        protocol, separator, path = self._manifest.rpartition("://")
        return protocol + separator + posixpath.normpath(posixpath.join(posixpath.dirname(path), uri))


def _store(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    return parts.scheme, parts.netloc if parts.scheme in ("http", "https") else ""
