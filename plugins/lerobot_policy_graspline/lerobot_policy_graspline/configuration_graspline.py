"""What lerobot's command line may say about a policy of ours. The run directory says everything else."""

from dataclasses import dataclass, field

from lerobot.configs import PreTrainedConfig
from lerobot.optim import LRSchedulerConfig, OptimizerConfig


@PreTrainedConfig.register_subclass("graspline")
@dataclass
class GrasplineConfig(PreTrainedConfig):
    """`--policy.<field>=<value>` beside lerobot's own fields.

    Args:
        run: run directory with policy.json; not needed with `--policy.path`, whose folder is one.
        n_action_steps: actions played of each chunk before asking again (at most the policy's horizon).
        cameras: {camera of ours: lerobot's name for it}; the default is LIBERO. Others keep their names.
        seed: of a policy that samples. Row r of the n-th batch draws from seed + n * batch size + r, as lerobot numbers
            its own seeds when this equals `--seed`.
    """

    run: str | None = None
    n_action_steps: int = 8
    cameras: dict[str, str] = field(default_factory=lambda: {"agentview": "image", "wrist": "image2"})
    seed: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_action_steps < 1:
            raise ValueError(f"policy.n_action_steps is {self.n_action_steps}, expected at least 1")

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> None:
        return None

    @property
    def reward_delta_indices(self) -> None:
        return None

    def validate_features(self) -> None:
        """Nothing to check here: each observation is checked against the policy's embodiment."""

    def get_optimizer_preset(self) -> OptimizerConfig:
        raise NotImplementedError("a graspline policy is trained by graspline: python -m scripts.train")

    def get_scheduler_preset(self) -> LRSchedulerConfig | None:
        return None
