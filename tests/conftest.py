"""What holds for all tests."""

from hypothesis import HealthCheck, Phase, settings

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("procmgr", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# For tests/mutants.py: the same few examples each time, and a failure is as good as the smallest one.
settings.register_profile(
    "mutants",
    settings.get_profile("procmgr"),
    max_examples=40,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
)
settings.load_profile("procmgr")
