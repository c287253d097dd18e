"""The report on result files: one HTML page, its figures as PNG, and the README's tables.

`python -m benchmarks.report` reads nothing but JSON: what the repository keeps in benchmarks/results, or a folder that
benchmarks wrote to.
"""
