"""Which requests go through a proxy, by the rules of urllib and requests, and how that is described."""

import pytest

from ray_distill.storage.proxies import is_loopback, keep_loopback_direct, opener_of, proxy_of

PROXY = {"http_proxy": "http://me:pw@proxy:3128"}


@pytest.mark.parametrize(
    ("url", "environment", "variable"),
    [
        ("http://head:8265", PROXY, "http_proxy"),
        ("http://head:8265", {"HTTP_PROXY": "proxy:3128"}, "HTTP_PROXY"),
        ("http://head:8265", {"all_proxy": "socks5://proxy:1080"}, "all_proxy"),
        ("http://head:8265", {"ALL_PROXY": "http://a", **PROXY}, "http_proxy"),
        ("https://head", PROXY, None),
        ("https://head", {"HTTPS_PROXY": "http://proxy"}, "HTTPS_PROXY"),
        ("http://head:8265", {"http_proxy": " "}, None),
        ("http://127.0.0.1:8265", PROXY, None),
        ("http://127.0.1.1:8265", PROXY, None),
        ("http://[::1]:8265", PROXY, None),
        ("http://localhost:8265", PROXY, None),
        ("http://head:8265", {**PROXY, "no_proxy": "a, head"}, None),
        ("http://head:8265", {**PROXY, "NO_PROXY": "head:8265"}, None),
        ("http://ray.head.local", {**PROXY, "no_proxy": ".local"}, None),
        ("http://10.1.2.3:8265", {**PROXY, "no_proxy": "10.0.0.0/8"}, None),
        ("http://11.1.2.3:8265", {**PROXY, "no_proxy": "10.0.0.0/8"}, "http_proxy"),
        ("http://head:8265", {**PROXY, "no_proxy": "*"}, None),
        ("s3://bucket", PROXY, None),
    ],
)
def test_a_request_goes_through_the_proxy_that_a_client_would_take(
    url: str, environment: dict[str, str], variable: str | None
) -> None:
    """Small letters count first; this machine never has a proxy."""
    found = proxy_of(url, environment)
    assert (found and found.variable) == variable


def test_the_advice_names_variable_proxy_and_host_but_no_password() -> None:
    """A reader can copy the remedy."""
    found = proxy_of("http://head:8265", PROXY)
    assert found is not None and "pw" not in found.advice
    assert found.advice.startswith("http_proxy sends this request through the proxy proxy:3128")
    assert "export no_proxy=head)" in found.advice


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, None),
        ({"no_proxy": "head"}, "head"),
        (PROXY, "localhost,127.0.0.1,127.0.0.0/8,::1"),
        ({"HTTPS_PROXY": "http://proxy", "NO_PROXY": "head,localhost"}, "head,localhost,127.0.0.1,127.0.0.0/8,::1"),
        ({**PROXY, "no_proxy": "*"}, "*"),
    ],
)
def test_this_machine_is_exempt_for_all_clients_of_the_process(before: dict[str, str], after: str | None) -> None:
    """MLflow, Ray and S3 clients read the variable themselves; without a proxy nothing changes."""
    environment = dict(before)
    keep_loopback_direct(environment)
    assert environment.get("no_proxy") == after
    assert environment.get("NO_PROXY") == (after if after and after != "head" else None)


def test_requests_follow_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's and MLflow's clients use requests."""
    import requests.utils

    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    assert not requests.utils.should_bypass_proxies("http://127.0.0.1:5000", None)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    keep_loopback_direct()
    for host in ("127.0.0.1", "127.0.1.1", "localhost", "[::1]"):
        assert requests.utils.should_bypass_proxies(f"http://{host}:5000", None), host
    assert not requests.utils.should_bypass_proxies("http://head:5000", None)


def test_the_opener_has_the_proxy_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the one of all_proxy, which urllib itself leaves out."""
    monkeypatch.setenv("all_proxy", "http://proxy:3128")
    kinds = {type(handler).__name__: handler for handler in opener_of("http://head:8265").handlers}
    assert kinds["ProxyHandler"].proxies == {"http": "http://proxy:3128"}
    assert "ProxyHandler" not in {type(handler).__name__ for handler in opener_of("http://127.0.0.1").handlers}


def test_loopback_is_a_name_or_an_address_of_this_machine() -> None:
    """Other names are not resolved."""
    assert [is_loopback(host) for host in ("LOCALHOST", "127.0.0.9", "::1", "head", "10.0.0.1", "")] == [
        *(True, True, True),
        *(False, False, False),
    ]
