"""Search for wrong labels: places where a confident out-of-fold prediction contradicts the truth.

`voxels.py` finds suspect voxels with confident learning and calibrated probabilities. `objects.py` and `whole.py`
derive findings about objects and whole masks from suspect voxels. `search.py` searches a run, and `table.py` writes
the CSV that the user completes. The HTML page is in `competition.report.review`.
"""
