"""The expert of the fake suite."""

from sim.fake import FakeEnv, FakeExpert


def expert(env: FakeEnv) -> FakeExpert:
    """The expert for an environment of this suite."""
    return FakeExpert(spec=env.spec)
