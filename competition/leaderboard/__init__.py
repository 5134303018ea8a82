"""Upload submissions to Kaggle, keep the ledger of uploads, and estimate the noise of leaderboard scores."""
