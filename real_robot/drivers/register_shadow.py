"""What the volatile registers must hold, compared with every reading: a difference means that a servo was reset.

A bus servo that browns out comes back in a quarter of a second with its torque off and its limits at the shop's
defaults, and says nothing. Neither does one that another program writes to.
"""

from collections.abc import Mapping


class RegisterShadow:
    """Expected values by servo and register name. Only what was written through `expect` is compared."""

    def __init__(self) -> None:
        self._expected: dict[int, dict[str, int]] = {}

    def expect(self, device_id: int, values: Mapping[str, int]) -> None:
        self._expected.setdefault(device_id, {}).update(values)

    def expected(self, device_id: int) -> dict[str, int]:
        return dict(self._expected.get(device_id, {}))

    def differences(self, device_id: int, seen: Mapping[str, int]) -> list[str]:
        """One text for each register of `seen` that is not as expected."""
        expected = self._expected.get(device_id, {})
        return [
            f"{name} is {value}, expected {expected[name]}"
            for name, value in seen.items()
            if name in expected and value != expected[name]
        ]

    def clear(self) -> None:
        self._expected.clear()
