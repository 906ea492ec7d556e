"""`python -m lerobot_policy_graspline <run directory> <folder>` writes a folder for `lerobot-eval --policy.path`."""

import sys

from lerobot_policy_graspline.modeling_graspline import export

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m lerobot_policy_graspline <run directory> <folder>")
    export(sys.argv[1], sys.argv[2])
