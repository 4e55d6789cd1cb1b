"""One file per kind of source: what a site has, told as events of the contract in `features.event`."""

ONE_CLOCK = "one clock: known times are assumed equal to event times"
"""What the command says, and the log's source line keeps, of a source that does not tell when it was told."""
