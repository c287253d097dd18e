"""One kit for the pages and figures of reports: on runs and studies of `stompp train`, and on benchmark results.

``html`` writes pages, ``figures`` holds the style of all figures, ``png`` makes files of them that tell what they were
drawn from, ``folder`` writes a report as a whole. What a report says is not here: see
:mod:`stompp_kernels.training.report` for runs, and ``benchmarks.report`` for benchmark results.
"""
