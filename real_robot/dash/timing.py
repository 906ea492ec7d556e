"""Numbers for the operator's page: how late the loop is, how old chunks are, how long an arm has been without one."""

from real_robot.daemon import Daemon, Report


class Timing:
    """Watches a daemon; calling it gives the present numbers by their label."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._starved_s = dict.fromkeys(daemon.sides, 0.0)
        daemon.subscribe(self._seen)

    def __call__(self) -> dict[str, float]:
        numbers = {"tick lateness p99 [ms]": 1e3 * self._daemon.lateness.quantile(0.99)}
        for name, side in self._daemon.sides.items():
            numbers[f"{name}: chunk latency p95 [ms]"] = 1e3 * side.controller.latency.p95
            numbers[f"{name}: starved [ms]"] = 1e3 * self._starved_s[name]
        return numbers

    def _seen(self, report: Report) -> None:
        self._starved_s[report.arm] = report.tick.starved_s
