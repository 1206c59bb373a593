"""What a run tells: the journal, the fold over it, and the views for people."""
