"""The fault-injection suite: sixty things that go wrong with an arm, each injected into a wire-level twin."""
