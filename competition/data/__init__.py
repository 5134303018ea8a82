"""Read the case table, images and masks; make folds, preprocessed cases and training samples."""
