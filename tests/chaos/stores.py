"""The two kinds of storage that simulated runs write to; every operation of theirs may be struck by a fault."""

import os
import random
import threading
from typing import Any, ClassVar

from fsspec.spec import AbstractFileSystem

from birder_ray.folder import Folder
from tests.chaos.simulated import Died, Throttled, strike


class DiskFolder(Folder):
    """A folder on a real disk; on death a write may leave half of its temporary file."""

    def write(self, name: str, data: bytes) -> None:
        try:
            strike("write", name, lambda: super(DiskFolder, self).write(name, data))
        except Died:
            if random.Random(f"{name} {len(data)}").random() < 0.3:
                os.makedirs(os.path.dirname(self.at(name)), exist_ok=True)
                with open(f"{self.at(name)}.{'0' * 32}.tmp", "wb") as file:
                    file.write(data[: len(data) // 2])
            raise


def _wrap(operation: str) -> None:
    original = getattr(Folder, operation)

    def struck(self: DiskFolder, name: str, *args: Any, **kwargs: Any) -> Any:
        return strike(operation, name, lambda: original(self, name, *args, **kwargs))

    setattr(DiskFolder, operation, struck)


for each in ("create", "replace", "delete", "read", "names", "version"):
    _wrap(each)


class ObjectStore(AbstractFileSystem):
    """An object store with S3's conditional writes, in memory; faults strike below birder-ray's retries."""

    protocol = ("chaos", "s3")
    cachable = False
    stores: ClassVar[dict[str, dict[str, tuple[bytes, str]]]] = {}
    listed: ClassVar[dict[str, list[dict[str, Any]]]] = {}
    """The first listing of each path; what a listing that lags behind says again."""
    one = threading.Lock()

    def _store(self, path: str) -> tuple[dict[str, tuple[bytes, str]], str]:
        bucket, _, key = self._strip_protocol(path).partition("/")
        return self.stores.setdefault(bucket, {}), key

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("chaos://").strip("/")

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **told: Any) -> None:
        store, key = self._store(path)

        def put() -> None:
            with self.one:
                if mode == "create" and key in store:
                    raise FileExistsError(path)
                if "IfMatch" in told:
                    if key not in store:
                        raise FileNotFoundError(path)
                    if store[key][1] != told["IfMatch"]:
                        raise OSError(22, "PreconditionFailed") from Throttled(412)
                store[key] = (bytes(value), os.urandom(8).hex())

        strike("pipe_file", key, put)

    def cat_file(self, path: str, start: Any = None, end: Any = None, **told: Any) -> bytes:
        return strike("cat_file", self._store(path)[1], lambda: self._found(path)[0][start:end])

    def _found(self, path: str) -> tuple[bytes, str]:
        store, key = self._store(path)
        if key not in store:
            raise FileNotFoundError(path)
        return store[key]

    def rm_file(self, path: str) -> None:
        store, key = self._store(path)
        strike("rm_file", key, lambda: store.pop(key, None))

    def info(self, path: str, **told: Any) -> dict[str, Any]:
        def look() -> dict[str, Any]:
            store, key = self._store(path)
            if key in store:
                return {"name": path, "size": len(store[key][0]), "type": "file", "ETag": store[key][1]}
            if any(name.startswith(f"{key}/") for name in list(store)) or not key:
                return {"name": path, "size": 0, "type": "directory"}
            raise FileNotFoundError(path)

        return strike("info", self._store(path)[1], look)

    def ls(self, path: str, detail: bool = True, **told: Any) -> list[Any]:
        def look() -> list[Any]:
            now = listing()
            self.listed.setdefault(path, now)
            return answer(now)

        def answer(found: list[dict[str, Any]]) -> list[Any]:
            if not found:
                raise FileNotFoundError(path)
            return found if detail else [each["name"] for each in found]

        def listing() -> list[dict[str, Any]]:
            store, key = self._store(path)
            bucket = self._strip_protocol(path).partition("/")[0]
            below = f"{key}/" if key else ""
            found: dict[str, dict[str, Any]] = {}
            for name, (data, etag) in sorted(store.items()):
                if name.startswith(below):
                    first, _, rest = name[len(below) :].partition("/")
                    full = f"{bucket}/{below}{first}"
                    kind = {"size": 0, "type": "directory"} if rest else {"size": len(data), "type": "file"}
                    found[full] = {"name": full, "ETag": etag, **kind}
            return list(found.values())

        return strike("ls", self._store(path)[1], look, lambda: answer(self.listed.get(path, [])))
