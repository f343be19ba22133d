"""Optuna's gRPC proxy of a storage, on a free port of the loopback interface, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from optuna.storages import BaseStorage
from optuna.storages._grpc.auto_generated import api_pb2_grpc
from optuna.storages._grpc.servicer import OptunaStorageProxyService


@contextmanager
def proxied(storage: BaseStorage) -> Iterator[str]:
    """The proxy's URL."""
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool)
        api_pb2_grpc.add_StorageServiceServicer_to_server(OptunaStorageProxyService(storage), server)  # as `run_grpc_proxy_server` does
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"grpc://127.0.0.1:{port}"
        finally:
            server.stop(None).wait()
