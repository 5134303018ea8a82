"""Upload submissions to Kaggle, record the uploads in a ledger, and estimate the noise of leaderboard scores."""
