"""The report on all result files: one HTML page, its figures as PNG, and the README's tables.

`python -m benchmarks.report` reads nothing but the JSON files in benchmarks/results.
"""
