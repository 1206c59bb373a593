"""Operations that have a fast path: each beside the slow twin that defines what it computes."""
