"""Uploads to Kaggle: the client, the ledger of uploads, and the noise of leaderboard scores."""
