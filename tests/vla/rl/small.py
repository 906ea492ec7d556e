"""Every algorithm in a size for tests, by the name of its configuration."""

from collections.abc import Callable
from functools import partial

from vla.rl.algorithms.advantage_conditioned import AdvantageConditioned
from vla.rl.algorithms.awac import AWAC
from vla.rl.algorithms.awr import AWR
from vla.rl.algorithms.bc import BC
from vla.rl.algorithms.cal_ql import CalQL
from vla.rl.algorithms.co_rft import CoRFT
from vla.rl.algorithms.filtered_bc import FilteredBC
from vla.rl.algorithms.iql import IQL
from vla.rl.algorithms.q_chunking import QChunking
from vla.rl.algorithms.q_chunking_distilled import DistilledQChunking
from vla.rl.algorithms.rlpd import RLPD
from vla.rl.algorithms.td3_bc import TD3BC
from vla.rl.algorithms.wsrl import WSRL

ACTOR = {"actor_width": 32, "actor_layers": 2, "actor_rate": 3e-3}
VALUE = {"value_width": 32, "value_layers": 1}
CRITIC = {"critic_width": 32, "critic_rate": 3e-3, "tau": 0.05}
FLAT = {**ACTOR, **CRITIC, "critic": "flat", "critic_layers": 2}
PREFIX = {**ACTOR, **CRITIC, "critic": "prefix", "critic_layers": 1}

SMALL: dict[str, Callable] = {
    "advantage_conditioned": partial(AdvantageConditioned, **ACTOR, **VALUE, value_rate=3e-3),
    "awac": partial(AWAC, **PREFIX),
    "awr": partial(AWR, **ACTOR, **VALUE, value_rate=3e-3),
    "bc": partial(BC, **ACTOR),
    "cal_ql": partial(CalQL, **FLAT, negatives=3, backup_samples=3),
    "co_rft": partial(CoRFT, **PREFIX, perturbed=2),
    "filtered_bc": partial(FilteredBC, **ACTOR),
    "iql": partial(IQL, **PREFIX, **VALUE),
    "q_chunking": partial(QChunking, **FLAT, candidates=16, backup_candidates=4, euler_steps=5),
    "q_chunking_distilled": partial(DistilledQChunking, **FLAT, euler_steps=5),
    "rlpd": partial(RLPD, **FLAT, ensemble=4),
    "td3_bc": partial(TD3BC, **FLAT),
    "wsrl": partial(WSRL, **FLAT, ensemble=4),
}
