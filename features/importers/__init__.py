"""One file per kind of source: what a site has, told as events of the contract in `features.event`."""
