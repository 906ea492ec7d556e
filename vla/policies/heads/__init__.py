"""Features to actions, and their loss; one file each."""
