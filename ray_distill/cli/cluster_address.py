"""Find the token of a Ray cluster, and check that its dashboard accepts it."""

import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from ray_distill.errors import ClusterError
from ray_distill.storage.proxies import opener_of, proxy_of

CONNECT_SECONDS = 10.0


def find_token(environment: Mapping[str, str]) -> str | None:
    """Return the cluster's token from the places that Ray itself reads, or None.

    The places are ``RAY_AUTH_TOKEN``, then the file in ``RAY_AUTH_TOKEN_PATH``, then ``~/.ray/auth_token``. With
    ``RAY_AUTH_MODE=disabled`` there is no token.

    Raises:
        ClusterError: ``RAY_AUTH_TOKEN_PATH`` names a missing file, or a file cannot be read.
    """
    if environment.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return None
    if token := environment.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path(environment.get("HOME", "~")).expanduser() / ".ray" / "auth_token"
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except FileNotFoundError as error:
        if named:
            raise ClusterError(f"RAY_AUTH_TOKEN_PATH names {named}, which does not exist: correct it") from error
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterError(
            f"cannot read the cluster's token in {path} ({error}): correct the file, or set RAY_AUTH_TOKEN"
        ) from error


def check_address(address: str, token: str | None) -> None:
    """Check that a Ray dashboard answers at ``address`` and accepts ``token``.

    Raises:
        ClusterError: as in `submit`, with the remedy.
    """
    if urlsplit(address).scheme not in ("http", "https"):
        raise ClusterError(f"the address must be the cluster's dashboard, like http://HEAD:8265; found {address!r}")
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        other = os.environ.get(name)
        if other and other.rstrip("/") != address.rstrip("/"):
            raise ClusterError(f"{name}={other} would override the address {address}: unset it, or make them equal")
    request = urllib.request.Request(f"{address.rstrip('/')}/api/jobs/", headers=headers_of(token))
    try:
        with opener_of(address).open(request, timeout=CONNECT_SECONDS):
            return
    except urllib.error.HTTPError as error:
        raise ClusterError(_refusal(address, error.code)) from error
    except (OSError, ValueError) as error:
        proxy, reason = proxy_of(address), getattr(error, "reason", error)
        advice = proxy and f"{proxy.advice}; or "
        raise ClusterError(
            f"no Ray cluster answers at {address} ({reason}): {advice or ''}start one (`ray start --head`), forward "
            "its port 8265, or correct the address"
        ) from error


def _refusal(address: str, status: int) -> str:
    """Return the message for an HTTP status, which may be the proxy's instead of the cluster's."""
    if (proxy := proxy_of(address)) is not None:
        return (
            f"the request to {address} ended with HTTP {status}: {proxy.advice}; or, if that status is the cluster's, "
            "check RAY_AUTH_TOKEN, host and port"
        )
    if status == 401:
        return (
            f"the cluster at {address} requires a token and none was sent: set RAY_AUTH_TOKEN, or copy the "
            "cluster's token to ~/.ray/auth_token (`ray get-auth-token` prints it on the head)"
        )
    if status == 403:
        return (
            f"the cluster at {address} refused the token: it belongs to another cluster; set RAY_AUTH_TOKEN to "
            "the output of `ray get-auth-token` on the head"
        )
    return f"{address} answered with HTTP {status}, which is not a Ray dashboard's Jobs API: check host and port"


def headers_of(token: str | None) -> dict[str, str]:
    """Return the headers that carry a token."""
    return {"Authorization": f"Bearer {token}"} if token else {}
