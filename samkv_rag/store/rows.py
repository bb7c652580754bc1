"""The catalogue's tables and every statement that touches them."""

from __future__ import annotations

import json
import sqlite3
import sys
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from samkv_rag.types import MatchRecord

SCHEMA = 2
_TABLES = """
CREATE TABLE entries (
    key TEXT PRIMARY KEY, namespace TEXT NOT NULL, fingerprint TEXT NOT NULL, n_tokens INTEGER NOT NULL,
    kv_dtype TEXT NOT NULL, bytes INTEGER NOT NULL, record TEXT NOT NULL, checksum INTEGER NOT NULL,
    damaged INTEGER NOT NULL, last_used INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX entries_by_use ON entries (last_used, bytes);
CREATE INDEX entries_by_namespace ON entries (namespace, key);
CREATE TABLE owners (owner TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY (owner, key)) WITHOUT ROWID;
CREATE INDEX owners_by_key ON owners (key);
CREATE TABLE facts (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
"""
_STATEMENTS = tuple(statement.strip() for statement in _TABLES.split(";") if statement.strip())
_COLUMNS = "key, namespace, fingerprint, n_tokens, kv_dtype, bytes, record, checksum, damaged"
COUNTERS = ("hits", "misses", "evictions")


class RowDamaged(Exception):
    """A row's values are not the ones that were written: the catalogue must be rebuilt from the files."""


@dataclass(frozen=True, slots=True)
class Row:
    """What the catalogue knows about an entry; `nbytes` is the size of both files."""

    key: str
    namespace: str
    fingerprint: str
    n_tokens: int
    kv_dtype: str
    nbytes: int
    record: MatchRecord
    damaged: bool = False

    def values(self) -> tuple[str, str, str, int, str, int, str]:
        match = self.record
        record = json.dumps([match.length, match.head, match.tail, match.digest])
        return self.key, self.namespace, self.fingerprint, self.n_tokens, self.kv_dtype, self.nbytes, record

    @classmethod
    def of(cls, values: Sequence[object]) -> Row:
        """The row with these columns; RowDamaged if they do not match their checksum."""
        *written, checksum, damaged = values
        if _checksum(written) != checksum:
            raise RowDamaged(f"The row of {written[0]} is damaged.")
        key, namespace, fingerprint, n_tokens, kv_dtype, nbytes, record = written
        match, names = MatchRecord(*json.loads(str(record))), (str(key), str(namespace), str(fingerprint))
        return cls(*names, _int(n_tokens), str(kv_dtype), _int(nbytes), match, bool(damaged))


class Rows:
    """The statements, on one connection. The caller holds the transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sql = connection.execute

    def create(self) -> None:
        """Create the tables, inside a transaction (executescript would end it)."""
        for statement in _STATEMENTS:
            self._sql(statement)
        self._sql(f"PRAGMA user_version = {SCHEMA}")

    def schema(self) -> int:
        """The schema version, 0 for a new file."""
        return _int(self._sql("PRAGMA user_version").fetchone()[0])

    def sound(self) -> bool:
        """Whether the tables are ours and SQLite finds its own file consistent, indexes included."""
        tables = {sql for (sql,) in self._sql("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}
        return tables == set(_STATEMENTS) and self._sql("PRAGMA integrity_check(1)").fetchone()[0] == "ok"

    def get(self, key: str) -> Row | None:
        values = self._sql(f"SELECT {_COLUMNS} FROM entries WHERE key = ?", (key,)).fetchone()
        return None if values is None else Row.of(values)

    def page(self, namespace: str | None, after: str, size: int = 500) -> list[Row]:
        """Up to `size` rows in key order, of keys after `after`."""
        where, values = ("namespace = ? AND", (namespace,)) if namespace is not None else ("", ())
        query = f"SELECT {_COLUMNS} FROM entries WHERE {where} key > ? ORDER BY key LIMIT ?"
        return [Row.of(found) for found in self._sql(query, (*values, after, size))]

    def add(self, row: Row) -> None:
        """Write the row as the most recently used, replacing any row with its key."""
        values = row.values()
        marks = ", ".join("?" * 10)
        self._sql(
            f"INSERT OR REPLACE INTO entries ({_COLUMNS}, last_used) VALUES ({marks})",
            (*values, _checksum(values), int(row.damaged), self._now()),
        )

    def touch(self, keys: Iterable[str]) -> None:
        """Mark `keys` as the most recently used, the last of them as the latest."""
        now = self._now()
        for tick, key in enumerate(keys):
            self._sql("UPDATE entries SET last_used = ? WHERE key = ?", (now + tick, key))

    def mark(self, key: str, damaged: bool) -> None:
        self._sql("UPDATE entries SET damaged = ? WHERE key = ?", (int(damaged), key))

    def remove(self, key: str) -> bool:
        """Remove a row; returns whether there was one."""
        return self._sql("DELETE FROM entries WHERE key = ?", (key,)).rowcount > 0

    def oldest(self, keep: str | None) -> Row | None:
        """The least recently used row other than `keep`'s."""
        query = f"SELECT {_COLUMNS} FROM entries WHERE key IS NOT ? ORDER BY last_used LIMIT 1"
        values = self._sql(query, (keep,)).fetchone()
        return None if values is None else Row.of(values)

    def totals(self) -> tuple[int, int, int]:
        """Entries, their bytes, and how many of them are marked as damaged."""
        query = "SELECT COUNT(*), TOTAL(bytes), TOTAL(damaged <> 0) FROM entries"
        count, nbytes, damaged = self._sql(query).fetchone()
        return int(count), int(nbytes), int(damaged)

    def kv_dtypes(self) -> dict[str, int]:
        """Entry counts by how K and V are stored."""
        return dict(self._sql("SELECT kv_dtype, COUNT(*) FROM entries GROUP BY kv_dtype ORDER BY kv_dtype"))

    def total_bytes(self) -> int:
        return int(self._sql("SELECT TOTAL(bytes) FROM entries INDEXED BY entries_by_use").fetchone()[0])

    def retain(self, key: str, owner: str) -> None:
        self._sql("INSERT OR IGNORE INTO owners (owner, key) VALUES (?, ?)", (owner, key))

    def is_free(self, key: str) -> bool:
        """Whether there is a row of `key`, and no owner."""
        return self._sql("SELECT 1 FROM entries WHERE key = ?", (key,)).fetchone() is not None and self._unowned(key)

    def owned(self, owner: str) -> list[str]:
        return [key for (key,) in self._sql("SELECT key FROM owners WHERE owner = ? ORDER BY key", (owner,))]

    def owned_under(self, prefix: str) -> list[tuple[str, str]]:
        """(owner, key) pairs of all owners whose name begins with `prefix`."""
        after = _after(prefix)
        if after is None:
            return list(self._sql("SELECT owner, key FROM owners WHERE owner >= ?", (prefix,)))
        return list(self._sql("SELECT owner, key FROM owners WHERE owner >= ? AND owner < ?", (prefix, after)))

    def release(self, key: str, owner: str) -> bool:
        """End `owner`'s hold on `key`; returns whether it was the last owner."""
        gone = self._sql("DELETE FROM owners WHERE owner = ? AND key = ?", (owner, key)).rowcount
        return bool(gone) and self._unowned(key)

    def _unowned(self, key: str) -> bool:
        return self._sql("SELECT 1 FROM owners WHERE key = ? LIMIT 1", (key,)).fetchone() is None

    def disown(self, key: str) -> None:
        """Forget every owner of `key`."""
        self._sql("DELETE FROM owners WHERE key = ?", (key,))

    def owners(self) -> list[tuple[str, str]]:
        """All (key, owner) pairs."""
        return list(self._sql("SELECT key, owner FROM owners"))

    def count(self, name: str, by: int) -> None:
        """Add `by` to a counter."""
        self._sql("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", (name, self.counter(name) + by))

    def counter(self, name: str) -> int:
        found = self._sql("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return _int(found[0]) if found else 0

    def _now(self) -> int:
        """One later than every use so far: a clock that processes share and that never goes back."""
        return _int(self._sql("SELECT MAX(last_used) FROM entries").fetchone()[0]) + 1


def _after(prefix: str) -> str | None:
    """The first of all texts that come after those that begin with `prefix`; None: there is none. SQLite compares bytes
    of UTF-8, which are in the order of their characters."""
    kept = prefix.rstrip(chr(sys.maxunicode))
    if not kept:
        return None
    last = ord(kept[-1]) + 1
    return kept[:-1] + chr(0xE000 if last == 0xD800 else last)  # UTF-8 has no surrogates


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0


def _checksum(values: Sequence[object]) -> int:
    return zlib.crc32(repr(tuple(values)).encode("utf-8", "surrogatepass"))
