"""Case table, images, masks, folds, preprocessing and training samples."""
