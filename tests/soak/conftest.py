"""The servers of the fault tests."""

from tests.faults.conftest import _house, house

__all__ = ["_house", "house"]
