"""The rows of a Parquet file, as the JSON objects they stand for."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson

from dsm_engine.data.sources.rows import Row
from dsm_engine.errors import DsmError

PARQUET_MAGIC = b"PAR1"
_MAX_BATCH_ROWS = 1024
_BATCH_BYTES = 2 << 20
_BUFFER_BYTES = 1 << 20  # without it a column of a row group is read as one


def read_parquet(path: Path) -> Iterator[Row]:
    """Row by row, in bounded memory. Raises DsmError where the file is damaged."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DsmError(
            f"{path}: Parquet files need pyarrow; install dsm-engine[data]: {error}"
        ) from error
    try:
        with parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES) as file:
            yield from _rows(file, path)
    except (OSError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DsmError(f"{path}: cannot be read as Parquet: {reason}") from error


def _rows(file: Any, path: Path) -> Iterator[Row]:
    num_rows, size = file.metadata.num_rows, path.stat().st_size
    line = 0
    for batch in file.iter_batches(batch_size=_batch_rows(file.metadata)):
        for record in batch.to_pylist():
            line += 1
            yield Row(
                path=path,
                line=line,
                byte=None,
                raw=_json(record, f"{path}:row {line}"),
                position=size * line // num_rows,
            )


def _batch_rows(metadata: Any) -> int:
    """As many rows as hold a few MiB where they are largest, by the sizes of the row groups."""
    groups = [metadata.row_group(idx) for idx in range(metadata.num_row_groups)]
    row_bytes = max((g.total_byte_size / max(1, g.num_rows) for g in groups), default=0)
    return max(1, min(_MAX_BATCH_ROWS, int(_BATCH_BYTES / max(1, row_bytes))))


def _json(record: dict[str, Any], where: str) -> bytes:
    try:
        return orjson.dumps(record, default=_plain)
    except TypeError as error:  # also what is no UTF-8, and maps with keys that are no text
        raise DsmError(f"{where}: has a value that JSON cannot hold: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, bytes):
        return value.decode()
    raise TypeError(f"of type {type(value).__name__}")
