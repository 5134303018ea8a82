"""Store training runs on disk: their folders, jobs, results, checkpoints, locks and out-of-fold predictions."""
