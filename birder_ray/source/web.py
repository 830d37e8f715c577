"""HTTP for the URIs of a manifest. Whoever wrote the URI, or answers it, decides where the request goes: here it does
not go to this machine, its network or its cloud's metadata service, unless the user named that host.
"""

from ipaddress import IPv6Address, ip_address
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from fsspec.implementations.http import HTTPFileSystem

from birder_ray.errors import SampleError
from birder_ray.source.base import MAX_BYTES


def guarded(named: set[str], options: dict[str, Any]) -> HTTPFileSystem:
    """A filesystem that follows redirects to the internet and to the hosts in `named` (which may grow)."""

    async def get_client(**arguments: Any) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(**{"connector": _Connector(named), **arguments})

    # fsspec would keep an instance per manifest for ever
    return _Web(**{"get_client": get_client, **options}, skip_instance_cache=True)


class _Web(HTTPFileSystem):
    async def _cat_file(self, url: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        session = await self.set_session()
        async with session.get(self.encode_url(url), **self.kwargs, **options) as answer:
            self._raise_not_found_for_status(answer, url)
            parts, size = [], 0
            async for part in answer.content.iter_any():
                parts.append(part)
                size += len(part)
                if size > MAX_BYTES:
                    raise SampleError("TooLarge", f"the server sends more than {MAX_BYTES >> 20} MiB")
            return b"".join(parts)


class _Connector(aiohttp.TCPConnector):
    """Checks every host that is connected to: of the URI, and of each redirect."""

    def __init__(self, named: set[str]):
        super().__init__(resolver=_Resolver(named))
        self._named = named

    async def connect(self, req: aiohttp.ClientRequest, *arguments: Any, **options: Any) -> Any:
        if req.proxy is not None and req.proxy.host:
            self._named.add(req.proxy.host)  # given by the user, and often in the own network
        host = req.url.host or ""
        if host not in self._named and _is_address(host) and not is_public(host):
            raise _refused(host)  # aiohttp does not ask the resolver for these
        return await super().connect(req, *arguments, **options)


class _Resolver(AbstractResolver):
    def __init__(self, named: set[str]):
        self._system = aiohttp.ThreadedResolver()
        self._named = named

    async def resolve(self, host: str, *arguments: Any, **options: Any) -> list[ResolveResult]:
        found = await self._system.resolve(host, *arguments, **options)
        if host in self._named:
            return found
        public = [each for each in found if is_public(each["host"])]
        if not public:
            raise _refused(host)
        return public

    async def close(self) -> None:
        await self._system.close()


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the internet, and not to this machine, a private network or a cloud."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        ip = ip.ipv4_mapped or ip.sixtofour or ip
    return ip.is_global and not ip.is_multicast


def _is_address(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _refused(host: str) -> SampleError:
    return SampleError(
        "LocalUriRefused", f"leads to {host}, which is not on the internet; --allow-local-uris would allow it"
    )
