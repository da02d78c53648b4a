"""One open study database: its engine, its transactions, and what goes wrong at the door."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, exc
from sqlalchemy.engine import make_url

from sft_tune.errors import StorageError
from sft_tune.store import schema
from sft_tune.store.retry import ATTEMPTS, retrying
from sft_tune.store.urls import redact, resolve_url, scrub

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

T = TypeVar("T")

BUSY_SECONDS = 60
CONNECT_SECONDS = 10

_EXTRAS = {
    "postgresql": ("PostgreSQL", "postgresql", "psycopg"),
    "mysql": ("MySQL and MariaDB", "mysql", "pymysql"),
}
# What drivers say at the door, and what to do about it.
_REMEDIES = (
    ("password authentication failed", "the server refuses the user or the password; check both"),
    ("no password supplied", "the server asks for a password: postgresql://USER:PASSWORD@HOST/..."),
    ("Access denied", "the server refuses the user or the password, or this database to them"),
    ("role ", "the server does not know this user; check it, or create it"),
    ("Unknown database", "create the database first: CREATE DATABASE {name}"),
    ("does not exist", "create the database first: CREATE DATABASE {name}"),
    ("refused", "no server answers there; is it started, is the port right?"),
    ("Can't connect", "no server answers there; are host and port right, is it started?"),
    ("resolve", "the host's name is unknown; check it"),
    ("Name or service", "the host's name is unknown; check it"),
    ("timeout", "the server does not answer; are host, port and firewall right?"),
    ("not a database", "the file is no SQLite database; give another one"),
    ("readonly", "the file or its folder cannot be written; check the permissions"),
    ("unable to open", "the file or its folder cannot be read or written; check the permissions"),
    ("full", "the disk is full; make room and start again"),
)


def engine_options(url: str) -> dict[str, Any]:
    """Return `create_engine`'s options for ``url``; Optuna's engine on it uses the same."""
    if make_url(url).get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": BUSY_SECONDS}}
    options: dict[str, Any] = {"pool_pre_ping": True}
    if "connect_timeout" not in make_url(url).query:
        options["connect_args"] = {"connect_timeout": CONNECT_SECONDS}
    return options


def _make_engine(url: str) -> Engine:
    parsed = make_url(url)
    backend = parsed.get_backend_name()
    options = engine_options(url)
    if backend == "mysql":
        # Its default, repeatable read, locks the gaps between rows: needless deadlocks.
        options["isolation_level"] = "READ COMMITTED"
    try:
        engine = create_engine(parsed, **options)
    except (ImportError, exc.NoSuchModuleError):
        name, extra, driver = _EXTRAS.get(backend, (backend, backend, backend))
        if parsed.drivername not in {"postgresql+psycopg", "mysql+pymysql"}:
            driver = parsed.drivername.partition("+")[2] or driver
        raise StorageError(
            f"{name} needs the driver {driver}, which is not installed: "
            f"pip install 'sft_tune[{extra}]'"
        ) from None
    if backend == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver's own BEGINs are off: `_begin_sqlite` says when and how.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later fails at once when another wrote between,
    # whatever the busy timeout; one that says from the start that it will write waits its turn.
    writes = connection.get_execution_options().get("sft_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


class Database:
    """An open study database. ``engine`` is for reads; writes go through `write`.

    Attributes:
        url: complete URL, password included; show `redact(url)` instead.
        engine: SQLAlchemy's engine.
        backend: ``sqlite``, ``postgresql`` or ``mysql`` (MariaDB too).
        optuna: Optuna's storage on it, once `open_optuna_storage` has opened it.
    """

    def __init__(self, url: str, engine: Engine) -> None:
        """Use `Database.open`."""
        self.url = url
        self.engine = engine
        self.backend = engine.dialect.name
        self.optuna: RDBStorage | None = None
        self._writer = engine.execution_options(sft_writes=True)

    def __repr__(self) -> str:
        return f"Database({redact(self.url)!r})"

    @classmethod
    def open(cls, url: str | None = None, *, create: bool) -> Database:
        """Open the database at ``url`` (`resolve_url` says what None and short forms mean).

        Args:
            url: URL or path of the database.
            create: make the file and the tables, ours and Optuna's, where they are missing, and
                upgrade older ones. Any number of processes may do so at once.

        Raises:
            StorageError: no database there (``create=False``), no server, wrong password,
                missing driver, tables of a newer sft_tune; each with its remedy.
        """
        complete = resolve_url(url)
        if make_url(complete).get_backend_name() == "sqlite":
            _check_file(complete, create)
        database = cls(complete, _make_engine(complete))
        try:
            with database._told_at_the_door():
                schema.ensure(database, create=create)
        except BaseException:
            database.dispose()
            raise
        return database

    def dispose(self) -> None:
        """Close every pooled connection, Optuna's too."""
        if self.optuna is not None:
            self.optuna.remove_session()
            self.optuna.engine.dispose()
            self.optuna = None
        self.engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Give a connection; commit when the block ends, roll back when it raises."""
        with self._writer.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a connection for reading; on SQLite all reads of the block see one state."""
        with self.engine.connect() as connection:
            yield connection

    def write(self, operation: Callable[[Connection], T], *, attempts: int = ATTEMPTS) -> T:
        """Do ``operation`` in a transaction of its own, again when a passing error broke it.

        ``operation`` must bear being done again after a commit whose answer was lost.

        Raises:
            StorageError: when the database stays locked or away, or its disk is full.
        """

        def once() -> T:
            with self.transaction() as connection:
                return operation(connection)

        try:
            return retrying(once, attempts=attempts)
        except (exc.OperationalError, exc.InterfaceError) as error:
            raise self._storage_error(error, "cannot write to") from error

    @contextmanager
    def _told_at_the_door(self) -> Iterator[None]:
        try:
            yield
        except exc.DBAPIError as error:
            # Not chained: a driver's error may carry the connection's arguments.
            raise self._storage_error(error, "cannot open") from None

    def _storage_error(self, error: exc.DBAPIError, what: str) -> StorageError:
        said = scrub(" ".join(str(error.orig).split()), self.url)
        name = make_url(self.url).database
        remedy = next((cure for phrase, cure in _REMEDIES if phrase in said), None)
        cure = f"; {remedy.format(name=name)}" if remedy else ""
        return StorageError(f"{what} {redact(self.url)}: {said}{cure}")


def _check_file(url: str, create: bool) -> None:
    """Raise StorageError when the SQLite file of ``url`` cannot be there, or made."""
    path = Path(make_url(url).database or "")
    if path.is_file():
        return
    if path.exists():
        raise StorageError(f"{path} is not a file; give the path of a database file")
    if not create:
        raise StorageError(
            f"no study database at {path}; `sft-tune start` makes one, --storage names another"
        )
    if not path.parent.is_dir():
        raise StorageError(f"the folder {path.parent} of the database does not exist; make it")
