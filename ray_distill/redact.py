"""Remove secrets from what leaves the process: stderr, logs, MLflow, files of errors."""

import re

#: What stands for a secret.
HIDDEN = "…"

_NAMES = (
    r"(?:x-(?:amz|goog)-)?(?:signature|credential|security-token)|sig|awsaccesskeyid|googleaccessid"
    r"|(?:\w*_)?api[_-]?key|access[_-]?key(?:[_-]?id)?|account[_-]?key|private[_-]?key|shared[_-]?access[_-]?signature"
    r"|(?:client|aws)?[_-]?secret(?:[_-]?access)?(?:[_-]?key)?"
    r"|(?:auth|access|refresh|session|sas|hf|hub|bearer|api)?[_-]?token"
    r"|(?:\w*_)?passw(?:or)?d|passwd|pwd|passphrase|credentials?|authorization"
)
_SECRET = re.compile(rf"(?:{_NAMES})", re.IGNORECASE)
_USER = re.compile(r"(://[^/@\s:'\"]*):[^/@\s'\"]+@")
_QUERY = re.compile(rf"([?&;](?:{_NAMES})=)[^&#;\s'\"<>)\]}}]+", re.IGNORECASE)
#: ``name=value`` and ``'name': 'value'``; a colon without quotes is a sentence's, as in "bytes a token: 82".
_PAIR = re.compile(
    rf"(?<![\w-])((?:{_NAMES})\s*=\s*|(['\"])(?:{_NAMES})\2\s*:\s*)(?!{HIDDEN})"
    r"(?:'[^']*'|\"[^\"]*\"|[^\s,;&'\"(){}\[\]]+)",
    re.IGNORECASE,
)
_BEARER = re.compile(r"((?:bearer|basic)\s+)[\w.~+/=-]{8,}", re.IGNORECASE)
#: Tokens that their issuers made recognisable.
_KNOWN = re.compile(
    r"\b(?:A[KS]IA[0-9A-Z]{16}|gh[pousr]_\w{20,}|github_pat_\w{20,}|hf_\w{20,}|sk-[\w-]{20,}|xox[abprs]-[\w-]{10,})"
)


def redact(text: str) -> str:
    """Return a text with ``…`` for its secrets.

    These are passwords in URIs, signed queries, ``api_key=…`` and known tokens.
    """
    text = _USER.sub(rf"\1:{HIDDEN}@", text)
    text = _QUERY.sub(rf"\1{HIDDEN}", text)
    text = _PAIR.sub(rf"\1{HIDDEN}", text)
    return _KNOWN.sub(HIDDEN, _BEARER.sub(rf"\1{HIDDEN}", text))


def is_secret(name: str) -> bool:
    """Return whether a dotted name is that of a secret: ``teacher.arguments.api_key``."""
    return _SECRET.fullmatch(name.rsplit(".", 1)[-1]) is not None


def has_secret(text: str) -> bool:
    """Return whether `redact` removes something from a text."""
    return redact(text) != text
