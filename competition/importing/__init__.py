"""Exchange data with other programs, such as nnU-Net: make runs from their predictions, and write folds for them."""
