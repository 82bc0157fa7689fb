"""How many mails of a kind an address gets, whatever is asked for: beyond that they stay away in silence."""

from adapters.addresses import email_key
from adapters.limits import LimitReached, Limits, Window
from adapters.personal_data import PersonalData
from adapters.settings import Settings


class MailCaps:
    """Counts by a keyed hash of the address: where it is counted, it does not stand."""

    def __init__(self, limits: Limits, personal: PersonalData, settings: Settings) -> None:
        self._limits = limits
        self._personal = personal
        self._rates = (settings.limit_mail_kind, settings.limit_mail_kind_daily)

    async def allow(self, address: str, template: str, *, name: str) -> bool:
        """May this mail go out? The same `name` counts once, however often its delivery is tried."""
        who = self._personal.pseudonym(email_key(address))
        windows = [
            Window(f"mail:{template}:{rate.window_s}", who, rate.tries_max, rate.window_s) for rate in self._rates
        ]
        try:
            await self._limits.reserve(windows, entry=name)
        except LimitReached:
            return False
        return True
