"""Ways to learn from chunks, one small file each: backup x conservatism x extraction, over shared parts of vla/rl."""
