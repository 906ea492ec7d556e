"""Judges that are trained, or that are large models asked a question. Encoders come from outside, as callables."""
