"""What happens now: feeds, facts, scores, alerts. Imports models and features; the only place with I/O loops."""
