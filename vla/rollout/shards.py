"""Rows of a plan for players that may die: who plays what next, and what becomes of the rows of the dead.

Special: knows neither processes nor Ray. A row that was with a dying player may have killed it, so it is played again
on its own: the guilty one is found, and its neighbours come out as if nothing had happened.
"""

from collections import Counter, deque
from collections.abc import Sequence

from vla.core.errors import GrasplineError
from vla.rollout.runner import EpisodePlan, EpisodeResult

MAX_DEATHS = 3  # of the players that hold a row: once in company, then alone
MAX_DEATHS_IN_A_ROW = 5  # for each player, and for one more, without one finished row in between


class Shards:
    """Hands out rows in small shards, so that nobody waits for the slowest, and takes back what was lost.

    Neighbours in the plan stay together: they are mostly of one task. Shards shrink towards the end (guided
    self-scheduling, Polychronopoulos and Kuck, IEEE Trans. Computers 36, 1987, 1425-1439).

    Args:
        rows: what is to be played.
        players: how many share it.
        largest: rows of a shard, at most.
    """

    def __init__(self, rows: Sequence[EpisodePlan], *, players: int, largest: int) -> None:
        if players < 1 or largest < 1:
            raise ValueError(f"players {players} and largest {largest} must be >= 1")
        self._players, self._largest = players, largest
        self._fresh = deque(rows)
        self._suspects: deque[EpisodePlan] = deque()
        self._held: dict[int, list[EpisodePlan]] = {}
        self._deaths_of: Counter[EpisodePlan] = Counter()
        self._deaths_in_a_row = 0

    @property
    def left(self) -> int:
        """Rows without a result, those that are being played included."""
        return len(self._fresh) + len(self._suspects) + sum(map(len, self._held.values()))

    def holds(self, player: int) -> bool:
        """Whether the player still has rows to finish."""
        return bool(self._held.get(player))

    def take(self, player: int) -> list[EpisodePlan]:
        """The next rows for a player that holds none; [] when all the others have them."""
        if self.holds(player):
            raise ValueError(f"player {player} still holds rows")
        if self._suspects:
            size, queue = 1, self._suspects
        else:
            size, queue = len(self._fresh) // (2 * self._players), self._fresh
        shard = [queue.popleft() for _ in range(min(max(1, size), self._largest, len(queue)))]
        self._held[player] = shard.copy()
        return shard

    def finish(self, player: int, result: EpisodeResult) -> None:
        """Notes that a player has finished a row of its shard."""
        self._held[player].remove(EpisodePlan(result.task, result.init_state, result.seed))
        self._deaths_in_a_row = 0

    def lose(self, player: int, cause: str) -> list[EpisodeResult]:
        """Takes back the rows of a player that died; those that have lost too many come back as results with an error.

        Raises:
            GrasplineError: players die one after the other and nothing gets finished: the fault is no row's.
        """
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row > MAX_DEATHS_IN_A_ROW * (self._players + 1):
            raise GrasplineError(
                f"{self._deaths_in_a_row} deaths in a row, and no episode finished: {cause}; giving up"
            )
        given_up = []
        for row in self._held.pop(player, []):
            self._deaths_of[row] += 1
            if self._deaths_of[row] < MAX_DEATHS:
                self._suspects.append(row)
            else:
                given_up.append(_lost(row, f"{cause}, as all {MAX_DEATHS} times"))
        return given_up


def _lost(row: EpisodePlan, error: str) -> EpisodeResult:
    return EpisodeResult(
        task=row.task,
        init_state=row.init_state,
        seed=row.seed,
        success=False,
        steps=0,
        terminated=False,
        truncated=False,
        error=f"task '{row.task}', init state {row.init_state}: {error}",
        wall_s=0.0,
        physics_s=0.0,
        render_s=0.0,
        policy_s=0.0,
    )
