"""What is surprising: every document of a stream is scored, and the ones that stand out are said as they come."""
