"""A polite crawler: a durable frontier, a careful fetcher, manners, and the text of pages."""
