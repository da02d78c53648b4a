"""Which database: from an option, the environment or the default to one complete URL.

A password in a URL is never shown: messages hold `redact(url)` only, and what a driver says
passes through `scrub`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote_plus

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from sft_tune.errors import StorageError

ENVIRONMENT = "SFT_TUNE_STORAGE"
DEFAULT = "sqlite:///sft_tune.db"
FORMS = "sqlite:///FILE.db, postgresql://USER@HOST/NAME or mysql://USER@HOST/NAME"

# The drivers that the extras install; a URL that names another driver keeps it.
_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    # Optuna knows the dialect `mysql`, and SQLAlchemy finds out by itself when it is MariaDB.
    "mariadb": "mysql+pymysql",
    "mariadb+pymysql": "mysql+pymysql",
}
_BACKENDS = ("sqlite", "postgresql", "mysql")
_SECRET_OPTION = re.compile(r"(?i)([?&][^=&]*(?:passw|pwd|secret|token)[^=&]*=)[^&]*")


def resolve_url(explicit: str | None = None) -> str:
    """Return the complete URL of the database to use, its password included.

    The first of: ``explicit``, the environment variable ``SFT_TUNE_STORAGE``, the file
    ``sft_tune.db`` in the working directory. SQLite paths become absolute, ``postgres://`` and
    ``mariadb://`` get the driver that our extras install.

    Raises:
        StorageError: for something that is no URL of a database that we know.
    """
    text = (explicit or os.environ.get(ENVIRONMENT) or DEFAULT).strip()
    if "://" not in text:
        if scheme := next((name for name in _DRIVERS if re.match(rf"{name}:?/", text)), None):
            raise StorageError(
                f"storage {redact(text)!r} is no URL; write {scheme}:// at its beginning: {FORMS}"
            )
        return _of_file(text)
    scheme, _, rest = text.partition("://")
    if rest.count("@") > 1:
        raise StorageError(
            f"storage {redact(text)}: '@' in a user name or password must be written %40, "
            "'/' as %2F and ':' as %3A"
        )
    driver = _DRIVERS.get(scheme.lower(), scheme)
    if driver.split("+")[0] not in _BACKENDS:
        raise StorageError(f"storage {redact(text)}: unknown database {scheme!r}; use {FORMS}")
    try:
        url = make_url(f"{driver}://{rest}")
    except (ArgumentError, ValueError):
        # Not chained and not shown: what does not parse may be a password in the wrong place.
        raise StorageError(
            f"the {scheme} storage URL cannot be read (is the port a number?); use {FORMS}"
        ) from None
    complete = _complete_sqlite(url) if driver == "sqlite" else _complete_server(url)
    return complete.render_as_string(hide_password=False)


def _of_file(text: str) -> str:
    if Path(text).suffix not in {".db", ".sqlite", ".sqlite3"}:
        raise StorageError(f"storage {redact(text)!r} is neither a .db file nor a URL; use {FORMS}")
    return _complete_sqlite(URL.create("sqlite", database=text)).render_as_string()


def _complete_sqlite(url: URL) -> URL:
    name = url.database or ""
    if name in {"", ":memory:"} or name.startswith("file:") or url.query.get("mode") == "memory":
        raise StorageError(
            f"storage {redact(str(url))}: a study needs a database file, which other processes "
            "can open too; use sqlite:///FILE.db"
        )
    return url.set(database=str(Path(name).expanduser().absolute()))


def _complete_server(url: URL) -> URL:
    if not url.database:
        raise StorageError(
            f"storage {redact(url.render_as_string())} names no database; "
            "add one after the host: .../NAME"
        )
    if url.get_backend_name() == "mysql" and "charset" not in url.query:
        url = url.update_query_dict({"charset": "utf8mb4"})
    return url


def redact(url: str) -> str:
    """Return ``url`` fit to be shown: ``***`` in place of every password."""
    head, separator, rest = url.partition("://")
    if not separator:
        head, rest = "", url
    account, at, place = rest.rpartition("@")
    if at and ":" in account:
        rest = f"{account.split(':', 1)[0]}:***@{place}"
    elif not at:
        # `scheme://user:password` without a host: what stands for the port is no number.
        rest = re.sub(r"^([^:/?\[]+):(?!\d+(?:[/?]|$))[^/?]+", r"\1:***", rest)
    return _SECRET_OPTION.sub(r"\1***", f"{head}{separator}{rest}")


def scrub(text: str, url: str) -> str:
    """Return ``text``, written by a driver about ``url``, without the password of ``url``."""
    secrets = {value for value in (make_url(url).password,) if value}
    secrets |= {unquote_plus(match) for match in _secret_options(url)}
    for secret in sorted(secrets, key=len, reverse=True):
        for form in (secret, quote(secret), quote_plus(secret), repr(secret)[1:-1]):
            text = text.replace(form, "***")
    return text


def _secret_options(url: str) -> list[str]:
    return [match.group(0).partition("=")[2] for match in _SECRET_OPTION.finditer(url)]
