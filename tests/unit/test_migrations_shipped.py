"""The migrations of this release: named, in order, and never changed once they are out."""

import hashlib
import re
from pathlib import Path

from adapters.migrations import Migration, shipped


def test_they_are_numbered_without_a_gap() -> None:
    assert [migration.version for migration in shipped()] == list(range(1, len(shipped()) + 1))


def test_every_file_of_the_folder_is_one() -> None:
    folder = Path(__file__).parents[2] / "migrations"
    assert [migration.name for migration in shipped()] == sorted(path.name for path in folder.glob("*.sql"))
    assert all(re.fullmatch(r"\d{4}_[a-z0-9_]+\.sql", migration.name) for migration in shipped())


def test_a_checksum_is_that_of_the_text() -> None:
    migration = Migration(1, "0001_x.sql", "SELECT 1;\n")
    assert migration.checksum == hashlib.sha256(b"SELECT 1;\n").hexdigest()
    assert [one.checksum for one in shipped()] == [other.checksum for other in shipped()]


def test_every_file_says_what_it_is_for_and_stays_in_its_transaction() -> None:
    for migration in shipped():
        assert migration.sql.startswith("-- "), migration.name
        assert not re.search(r"(?im)^\s*(begin|commit|rollback)\s*;", migration.sql), migration.name
        assert "\r" not in migration.sql
        assert migration.applied_at is None
