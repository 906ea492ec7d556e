"""Images, state and instructions to features; one file each."""
