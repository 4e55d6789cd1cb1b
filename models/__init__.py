"""What follows from it: training, artifacts, scores. Imports features; no bus, no web."""
