"""The regression gate: two versions of the package, alternately timed on the same cases. See __main__.py."""
