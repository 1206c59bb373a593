"""Signals of a stream and of the predictions made on it: K, C and S by window, drift alarms, a gate."""
