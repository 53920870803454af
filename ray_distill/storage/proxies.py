"""Send requests to this machine directly, and name the proxy on the way of another request.

HTTP clients (urllib, requests, botocore, and through them Ray's, MLflow's and fsspec's) follow ``http_proxy``,
``https_proxy``, ``all_proxy`` and ``no_proxy``, in small or capital letters. A proxy cannot reach this machine by the
name ``localhost``, so its refusal would be mistaken for the service's.
"""

import os
import urllib.request
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

#: Names of this machine in ``no_proxy``; requests reads the network, other clients the addresses.
LOOPBACK = ("localhost", "127.0.0.1", "127.0.0.0/8", "::1")


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """A proxy that the environment names for a host."""

    variable: str
    url: str
    host: str
    """The host that is reached through it."""

    @property
    def advice(self) -> str:
        """Describe the proxy without its password, and how to go past it."""
        parts = urlsplit(self.url if "://" in self.url else f"//{self.url}")
        shown = f"{parts.hostname or self.url}{f':{parts.port}' if parts.port else ''}"
        return (
            f"{self.variable} sends this request through the proxy {shown}: if {self.host} is in your own network, "
            f"add it to no_proxy (export no_proxy={self.host}), else correct {self.variable}"
        )


def proxy_of(url: str, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """Return the proxy between a client and an HTTP URL; None if there is none."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or is_loopback(host) or _exempt(parts.netloc, host, environment):
        return None
    names = (f"{parts.scheme}_proxy", "all_proxy")
    found = ((form, environment.get(form, "")) for name in names for form in (name, name.upper()))
    return next((Proxy(variable=name, url=value, host=host) for name, value in found if value.strip()), None)


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine by its own name or address."""
    try:
        return host.lower() == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def opener_of(url: str) -> Any:
    """Return what opens a URL with urllib: through the proxy of `proxy_of`, or directly."""
    proxy = proxy_of(url)
    return urllib.request.build_opener(
        urllib.request.ProxyHandler({} if proxy is None else {urlsplit(url).scheme: proxy.url})
    )


def keep_loopback_direct(environment: MutableMapping[str, str] = os.environ) -> None:
    """Add this machine's own names to ``no_proxy``, for all clients, where a proxy is set."""
    proxies = [name for name in environment if name.lower().endswith("_proxy") and name.lower() != "no_proxy"]
    if not any(environment[name].strip() for name in proxies):
        return
    given = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    hosts = [host.strip() for host in given.split(",") if host.strip()]
    if hosts != ["*"]:
        hosts += [host for host in LOOPBACK if host not in hosts]
    environment["no_proxy"] = environment["NO_PROXY"] = ",".join(hosts)


def _exempt(netloc: str, host: str, environment: Mapping[str, str]) -> bool:
    """Return whether ``no_proxy`` exempts a host; as for clients, small letters count first."""
    names = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if any(urllib.request.proxy_bypass_environment(one, {"no": names}) for one in (netloc, host)):  # type: ignore[attr-defined]
        return True
    try:
        return any(ip_address(host) in ip_network(name.strip()) for name in names.split(",") if "/" in name)
    except ValueError:
        return False
