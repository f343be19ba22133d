"""The storage that several processes share: where it is, without its password; and how it is opened.

    postgresql://USER:PASSWORD@HOST/DATABASE    mysql://USER:PASSWORD@HOST/DATABASE    grpc://HOST:PORT    sqlite:////PATH

A password is never written or shown. It may come from GROW_STORAGE, or from where the drivers look, as ~/.pgpass.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from search.errors import ConfigurationError, RunError, suggestion

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

SCHEMES = ("postgresql", "mysql", "grpc", "sqlite")
_DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
_MASK = "***"
_SECRETS = ("password", "passwd", "sslpassword")
_PATIENCE_S = 10

_REMEDY = "install what it takes with: pip install 'growprune[storage]'"


@dataclass(frozen=True)
class StorageUrl:
    """A storage's URL. As text it has no password; ``secret`` is the whole."""

    secret: str = field(repr=False)

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.secret)
            port = parts.port
        except ValueError as error:
            raise ConfigurationError("storage has a port or host that is none, but must be a URL as postgresql://HOST:5432/NAME") from error
        scheme = parts.scheme.partition("+")[0]
        if scheme not in SCHEMES or "://" not in self.secret:
            rule = f"a URL that begins with {', '.join(f'{name}://' for name in SCHEMES)}"
            raise ConfigurationError(f"storage begins with {scheme!r}, but must be {rule}{suggestion(scheme, SCHEMES)}")
        if scheme == "grpc" and (parts.hostname is None or port is None):
            raise ConfigurationError(f"storage is {self}, but must name host and port, as grpc://HOST:13000")
        if any(name in _SECRETS for name, _ in parse_qsl(parts.query)):
            raise ConfigurationError("storage has its password in the query, but must have it before the host, as in USER:PASSWORD@HOST")

    def __str__(self) -> str:
        password = self._password
        return self.secret if password is None else self.secret.replace(f":{password}@", f":{_MASK}@", 1)

    @property
    def _password(self) -> str | None:
        return urlsplit(self.secret).password

    @property
    def complete(self) -> bool:
        """Whether it is the whole, and not the text of one that had a password."""
        return self._password != _MASK

    def open(self) -> BaseStorage:
        """ConfigurationError where a driver or the password is missing, RunError where nobody answers."""
        if not self.complete:
            raise ConfigurationError(f"storage is {self}, but must have its password; give it with --storage, or better by GROW_STORAGE")
        with _told(self):
            return self._proxy() if self.secret.startswith("grpc") else self._database()

    def check(self) -> None:
        """As `open`, without opening it for long."""
        close(self.open())

    def _proxy(self) -> BaseStorage:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what is wrong is said once, by us
        import grpc  # noqa: F401  # Optuna imports it when it is first used, and then says less
        from optuna.exceptions import ExperimentalWarning
        from optuna.storages import GrpcStorageProxy

        parts = urlsplit(self.secret)
        assert parts.hostname is not None
        assert parts.port is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # the version is pinned
            proxy = GrpcStorageProxy(host=parts.hostname, port=parts.port)
        proxy.wait_server_ready(_PATIENCE_S)
        return proxy

    def _database(self) -> BaseStorage:
        from optuna.storages import RDBStorage

        scheme, rest = self.secret.split("://", 1)
        patience = {"timeout": 30} if scheme.startswith("sqlite") else {"connect_timeout": _PATIENCE_S}
        return RDBStorage(
            f"{_DRIVERS.get(scheme, scheme)}://{rest}".replace("{", "{{").replace("}", "}}"),  # which Optuna formats
            engine_kwargs={"pool_pre_ping": True, "connect_args": patience},
        )


def close(storage: BaseStorage) -> None:
    """End the connections of a storage that was opened here."""
    from optuna.storages import GrpcStorageProxy, RDBStorage

    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()
    elif isinstance(storage, GrpcStorageProxy):
        storage.close()


def storage_url(text: str | None) -> StorageUrl | None:
    """The storage of an option or variable; None where there is none."""
    return None if text is None else StorageUrl(text)


@contextmanager
def _told(url: StorageUrl) -> Iterator[None]:
    """What can go wrong, in one line that holds no password."""
    try:
        yield
    except ImportError as error:
        raise ConfigurationError(f"storage is {url}, but must be one that a driver is installed for; {_REMEDY}") from error
    except Exception as error:  # every driver has errors of its own
        if type(error).__name__ == "NoSuchModuleError":
            raise ConfigurationError(f"storage is {url}, but must name a driver that is installed; {_REMEDY}") from error
        raise RunError(f"storage is {url}, but must be a server that answers; start it, or mend the URL ({_reason(url, error)})") from None


def _reason(url: StorageUrl, error: BaseException) -> str:
    text = " ".join(str(getattr(error, "orig", None) or error).split())
    password = url._password
    return text if not password else text.replace(password, _MASK).replace(unquote(password), _MASK)
