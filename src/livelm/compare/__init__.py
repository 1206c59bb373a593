"""Compare architectures: the same stream, the same clock, turn by turn, several seeds."""
