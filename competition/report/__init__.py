"""Write HTML pages about runs, studies, comparisons, ledgers, data explorations and reviews of labels.

Import functions from the modules, e.g. `from competition.report.run import write_report`. This file imports none of
them, because some pages (e.g. the page of a ledger) need neither torch nor a run.
"""
