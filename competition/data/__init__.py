"""The host's folder as a case table, images, masks, folds and prepared arrays."""
