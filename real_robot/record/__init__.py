"""Recording on a real arm: readings, commands as sent, pictures; gridded into episodes."""
