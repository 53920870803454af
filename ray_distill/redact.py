"""Remove secrets from what leaves the process: stderr, MLflow, reports, state, tracebacks.

Secrets are found by the names and forms that they have, and by their values: `hiding` takes those of the environment
and of the campaign, which a message of another library may contain without a name.
"""

import base64
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, quote_plus, unquote

#: What stands for a secret.
HIDDEN = "…"
#: Shortest value that is removed wherever it stands: a shorter one is a part of other words.
LEAST = 8

#: Names of secrets that have a meaning of their own, behind any words: ``OPENAI_API_KEY``, ``fs.s3a.secret.key``.
_CLEAR = (
    r"(?:[\w.-]*[_.-])?(?:api[_.-]?key|access[_.-]?key(?:[_.-]?id)?|account[_.-]?key|private[_.-]?key"
    r"|shared[_-]?access[_-]?signature|secret(?:[_.-]?access)?(?:[_.-]?key)?|passw(?:or)?d|passwd|pwd|passphrase"
    r"|credentials?|authorization|connection[_-]?string"
    r"|(?:auth|oauth|access|refresh|session|sas|hf|hub|bearer|api|jwt|github|gitlab|slack|vault)[_-]?token)"
    r"|(?-i:[A-Z0-9_]+_(?:TOKEN|SECRET|PASS))"
    r"|client[_-]?secret|awsaccesskeyid|googleaccessid|(?:x-(?:amz|goog)-)?(?:signature|credential|security-token)|sig"
)
_NAMES = rf"{_CLEAR}|token"
_SECRET = re.compile(rf"(?:{_NAMES})", re.IGNORECASE)
_UNMISTAKABLE = re.compile(rf"(?:{_CLEAR})", re.IGNORECASE)
#: A password before the host; one with a slash ends at the first @, as database URLs are read.
_USER = re.compile(r"(://[^/@\s:'\"]*):([^/\s'\"]+)@|(://[^/@\s:'\"]*):(?!\d*[/?#])([^@\s'\"]*/[^@\s'\"]*)@")
_QUERY = re.compile(rf"([?&;](?:{_NAMES})=)([^&#;\s'\"<>)\]}}]+)", re.IGNORECASE)
#: ``name=value`` and ``'name': 'value'``; a colon without quotes is a sentence's, as in "bytes a token: 82".
_PAIR = re.compile(
    rf"(?<![\w.-])((?:{_NAMES})\s*=\s*|(['\"])(?:{_NAMES})\2\s*:\s*)(?!{HIDDEN})"
    r"('[^']*'|\"[^\"]*\"|[^\s,;&'\"(){}\[\]]+)",
    re.IGNORECASE,
)
_HEADER = re.compile(
    r"(\b(?:(?:proxy-)?authorization|x-[\w-]*(?:key|token))['\"]?\s*:\s*['\"]?(?:(?:bearer|basic|digest|token)\s+)?"
    r"|\b(?:set-)?cookie['\"]?\s*:\s*['\"]?(?=\w+=))([^\r\n'\"{}\[\]]+)",
    re.IGNORECASE,
)
_BEARER = re.compile(r"((?:bearer|basic)\s+)([\w.~+/=-]{8,})", re.IGNORECASE)
#: Tokens that their issuers made recognisable.
_KNOWN = re.compile(
    r"\b(?:A[KS]IA[0-9A-Z]{16}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|hf_\w{20,}|sk-[\w-]{20,}"
    r"|xox[abprs]-[\w-]{10,}|AIza[\w-]{35}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
#: Parameters that sign a URL: each new signature has others for the same object.
_SIGNING = re.compile(
    r"(?:x-amz-|x-goog-).*|awsaccesskeyid|googleaccessid|signature|expires|policy|key-pair-id|sig|s[vpretsi]|spr|srt|sip"
    r"|sk[vtes]|skoid|sktid",
    re.IGNORECASE,
)
_SIGNED = re.compile(r"[?&](?:x-(?:amz|goog)-signature|signature|sig)=", re.IGNORECASE)
_PARAMETERS = re.compile(r"\?([^#\s'\"<>]*)")

#: Values of secrets in all forms in which a message may have them. A global, as the handlers of logs are: any thread
#: may format an error.
_values: dict[str, None] = {}


def redact(text: str) -> str:
    """Return a text with ``…`` for its secrets.

    These are passwords in URIs, signed queries, ``api_key=…``, headers, known tokens, and the values of `hiding`.
    """
    for value in _values:
        text = text.replace(value, HIDDEN)
    text = _USER.sub(lambda found: f"{found[1] or found[3]}:{HIDDEN}@", text)
    text = _QUERY.sub(rf"\1{HIDDEN}", text)
    text = _PAIR.sub(rf"\1{HIDDEN}", text)
    text = _HEADER.sub(rf"\1{HIDDEN}", text)
    return _KNOWN.sub(HIDDEN, _BEARER.sub(rf"\1{HIDDEN}", text))


def is_secret(name: str) -> bool:
    """Return whether a dotted name is that of a secret: ``teacher.arguments.api_key``."""
    return any(_SECRET.fullmatch(one) for one in (name, name.rsplit(".", 1)[-1]))


def has_credentials(url: str) -> bool:
    """Return whether a path or URL has a password, or a query with a key or a signature."""
    return _USER.search(url) is not None or _QUERY.search(url) is not None


def redacted(value: Any) -> Any:
    """Return plain values without secrets: those of secret names, and those inside texts."""
    return _changed(value, redact, is_secret)


def lasting(value: Any) -> Any:
    """Return plain values without what a new secret changes: for keys and names of files.

    A new password, key or signature for the same thing changes nothing. The name ``token`` alone counts only where its
    value is as long as a secret is: a tokenizer's token decides results.
    """
    return _changed(value, _unsigned, lambda name: _UNMISTAKABLE.fullmatch(name) is not None)


def secrets_in(value: Any, name: str = "") -> set[str]:
    """Return the values of the secrets in plain values.

    Args:
        value: plain values.
        name: that of the value; the items of a list have the list's.
    """
    if isinstance(value, Mapping):
        return set().union(*(secrets_in(item, str(key)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return set().union(*(secrets_in(item, name) for item in value))
    if not isinstance(value, str):
        return set()
    lines = {line for line in value.splitlines() if not line.startswith("-----")}
    kept = {value, *lines} if _is_kept(name, value) else set()
    found = [part for match in _USER.finditer(value) for part in (match[2], match[4]) if part]
    found += [match[group] for form, group in ((_QUERY, 2), (_PAIR, 3), (_BEARER, 2)) for match in form.finditer(value)]
    return kept | {one.strip("'\"") for one in found}


@contextmanager
def hiding(secrets: Iterable[str] = ()) -> Iterator[None]:
    """Let `redact` remove these values, and those of `hide`, until the end of the block."""
    before = dict(_values)
    hide(secrets)
    try:
        yield
    finally:
        _values.clear()
        _values.update(before)


def hide(secrets: Iterable[str]) -> None:
    """Let `redact` remove these values too, except short ones, which are parts of words."""
    forms = {form for secret in secrets if len(secret) >= LEAST for form in _forms(secret)}
    _values.update(dict.fromkeys(sorted(forms, key=len, reverse=True)))


def _forms(secret: str) -> set[str]:
    """Return a secret as it is, and as URLs, JSON, Python and HTTP write it."""
    plain = {secret, unquote(secret)}
    written = {form for one in plain for form in (quote(one, safe=""), quote_plus(one), json.dumps(one)[1:-1])}
    coded = {base64.b64encode(one.encode()).decode().rstrip("=") for one in plain}
    return {form for form in plain | written | coded if len(form) >= LEAST}


def _changed(value: Any, text: Callable[[str], str], hides: Callable[[str], bool], name: str = "") -> Any:
    """Return plain values with changed texts; the items of a list have the list's name."""
    if isinstance(value, Mapping):
        return {key: _changed(item, text, hides, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_changed(item, text, hides, name) for item in value]
    if not isinstance(value, str):
        return value
    return HIDDEN if value and (hides(name) or (name == "token" and _is_long(value))) else text(value)


def _is_kept(name: str, value: str) -> bool:
    """Return whether a text is a secret by its name; a short ``token`` may be a tokenizer's."""
    return is_secret(name) and (_UNMISTAKABLE.fullmatch(name) is not None or _is_long(value))


def _is_long(value: str) -> bool:
    return len(value) >= 2 * LEAST and not re.search(r"\s", value)


def _unsigned(text: str) -> str:
    """Return a text whose URLs have no password and no parameters of a signature."""
    text = _USER.sub(lambda found: f"{found[1] or found[3]}:{HIDDEN}@", text)
    if _SIGNED.search(text):
        text = _PARAMETERS.sub(_without_signature, text)
    return _QUERY.sub(rf"\1{HIDDEN}", text) if "://" in text else text


def _without_signature(query: re.Match[str]) -> str:
    kept = [part for part in query[1].split("&") if not _SIGNING.fullmatch(part.partition("=")[0])]
    return f"?{'&'.join(kept)}" if kept else ""
