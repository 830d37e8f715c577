"""From a URI in a manifest to a file on a filesystem."""

import posixpath
from urllib.parse import urljoin, urlsplit

import fsspec

from birder_ray.config import StorageOptions
from birder_ray.errors import SampleError
from birder_ray.source.fetch import reason
from birder_ray.storage import filesystem, is_local

Place = tuple[fsspec.AbstractFileSystem, str]

_REMOTE_PROTOCOLS = {"http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf"}


class Resolver:
    """Resolves the URIs of one manifest; relative ones start from its folder.

    A manifest from elsewhere may not reach into this machine, nor see the options (they may hold credentials) sent to
    another store than its own. A local manifest may name anything, and the options are for whatever it names.
    """

    def __init__(self, manifest: str, options: StorageOptions):
        self._manifest = manifest
        self._options = options
        self._local = is_local(manifest)

    def __call__(self, uri: str) -> Place | SampleError:
        if "::" in uri:
            return SampleError("BadUri", "chained URLs (::) are not allowed in a manifest")
        if "://" not in uri:
            if uri.startswith(("/", "~")) and not self._local:
                return SampleError("LocalUriRefused", "a remote manifest may not name local files")
            uri = self._absolute(uri)
        elif not self._local:
            protocol = urlsplit(uri).scheme
            if protocol in ("file", "local"):
                return SampleError("LocalUriRefused", "a remote manifest may not name local files")
            if protocol not in _REMOTE_PROTOCOLS and protocol != urlsplit(self._manifest).scheme:
                return SampleError("BadUri", f"{protocol}:// is not allowed in a remote manifest")
        trusted = self._local or _store(uri) == _store(self._manifest)
        try:
            return filesystem(uri, self._options if trusted else None)
        except Exception as error:  # whatever the filesystem makes of a malformed URL
            return SampleError("BadUri", reason(error))

    def _absolute(self, uri: str) -> str:
        if self._manifest.startswith(("http://", "https://")):
            return urljoin(self._manifest, uri)
        protocol, separator, path = self._manifest.rpartition("://")
        return protocol + separator + posixpath.normpath(posixpath.join(posixpath.dirname(path), uri))


def _store(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    return parts.scheme, parts.netloc if parts.scheme in ("http", "https") else ""
