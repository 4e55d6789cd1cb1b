"""What was known at a moment: events, facts, histories, windows. Pure; imports nothing else of the project."""
