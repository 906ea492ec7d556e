"""From a policy and envs to a number that can be believed: play, count, report."""
