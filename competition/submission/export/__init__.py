"""From runs to a folder that predicts without this project: weights, code, a script and a notebook."""
