"""Search for wrong labels, where the network's out-of-fold prediction contradicts the truth with high confidence.

`voxels.py` finds suspect voxels with confident learning and calibrated probabilities. `objects.py` and `whole.py`
derive findings about objects and whole masks from suspect voxels. `search.py` searches a run, and `table.py` writes the
CSV that the user completes. The page is in `competition.report.review`.
"""
