"""The expert of the slow_reach suite: the fastest there is."""

from sim.slow_reach import SlowReachEnv, SlowReachExpert


def expert(env: SlowReachEnv) -> SlowReachExpert:
    """The expert for an environment of this suite."""
    return SlowReachExpert(spec=env.spec)
