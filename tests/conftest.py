"""How many examples hypothesis makes: few and always the same ones, or many new ones with --hypothesis-profile."""

from hypothesis import HealthCheck, settings

settings.register_profile("fast", max_examples=30, derandomize=True, deadline=None)
settings.register_profile("endurance", max_examples=1000, deadline=None, print_blob=True,
                          suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fast")
