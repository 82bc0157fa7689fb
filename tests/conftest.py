"""For all tests: how hypothesis looks for examples."""

from hypothesis import HealthCheck, settings

# A machine that others share makes examples slowly at times; that says nothing of the test.
settings.register_profile("shared", suppress_health_check=[HealthCheck.too_slow], deadline=None)
settings.load_profile("shared")
