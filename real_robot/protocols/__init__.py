"""Wire protocols of bus servos as pure functions on bytes: no port, no clock, no state but that of a decoder."""
