"""What `audit verify` says of what it found, and how it ends."""

import json

import pytest
from typer.testing import CliRunner

from domain.audit_walk import Fault, Kind
from handlers import audit_command
from handlers.audit_verification import Verdict
from handlers.cli import app

FAULTS = [Fault(Kind.ROW_EDITED, 7, 7, "it is not what was sealed"), Fault(Kind.TAIL_CUT, 3, 5, "published")]


@pytest.mark.parametrize(("faults", "code"), [([], 0), (FAULTS, 1)])
@pytest.mark.parametrize("words", [(), ("--json",)])
def test_the_exit_says_whether_all_is_as_it_was(
    monkeypatch: pytest.MonkeyPatch, faults: list[Fault], code: int, words: tuple[str, ...]
) -> None:
    found = Verdict(rows=9, seals=2, unsealed=1, unpublished=0, faults=faults, unnamed=0)
    monkeypatch.setattr(audit_command, "_verify", lambda *_: found)
    ended = CliRunner().invoke(app, ["audit", "verify", *words])
    assert ended.exit_code == code
    if words:
        said = json.loads(ended.stdout)
        assert said["clean"] is (not faults)
        assert [fault["kind"] for fault in said["faults"]] == [str(fault.kind) for fault in faults]
    else:
        lines = ended.stdout.splitlines()
        expected = ["row_edited    7: it is not what was sealed", "tail_cut      3 to 5: published"] if faults else []
        assert lines[:-2] == expected
        assert lines[-1] == "1 rows wait for their seal, 0 seals to be published"


def test_thousands_of_faults_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [Fault(Kind.ROW_REMOVED, at, at, "gone") for at in range(5000)]
    found = Verdict(rows=9, seals=2, unsealed=0, unpublished=0, faults=faults, unnamed=12)
    monkeypatch.setattr(audit_command, "_verify", lambda *_: found)
    lines = CliRunner().invoke(app, ["audit", "verify"]).stdout.splitlines()
    assert len(lines) == 103
    assert lines[100:102] == ["and more; --json names them: 5000 row_removed", "and 12 more that are not named"]
