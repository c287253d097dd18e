"""Networks of other libraries and of the literature, and what this package makes of each."""
