"""Uploads to Kaggle: Kaggle's client, the ledger of uploads, and the noise of leaderboard scores."""
