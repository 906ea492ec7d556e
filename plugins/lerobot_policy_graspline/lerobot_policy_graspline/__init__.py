"""Policies of graspline in lerobot: `lerobot-eval --policy.type=graspline --policy.run=<run directory> ...`.

lerobot imports this package because of the name of its distribution; the import below registers the policy's type.
"""

from lerobot_policy_graspline.configuration_graspline import GrasplineConfig as GrasplineConfig
