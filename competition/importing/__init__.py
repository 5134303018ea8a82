"""Exchange data with other programs: make runs from their predictions, and write folds for them."""
