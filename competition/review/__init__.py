"""Search for wrong labels: places where out-of-fold predictions and truth disagree although the network is certain.

`voxels.py` decides for each voxel with confident learning and calibrated probabilities, `objects.py` and `whole.py`
turn voxels into findings about objects and whole masks, `search.py` goes through a run, and `table.py` writes the CSV
that the user answers. The page is in `competition.report.review`.
"""
