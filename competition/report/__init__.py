"""Write HTML pages of runs, studies, comparisons, ledgers and data explorations.

Import functions from the modules, e.g. `from competition.report.run import write_report`. This file imports no module,
because the page of a ledger or of an exploration needs neither torch nor a run.
"""
