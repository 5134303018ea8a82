"""What the file of each known competition looks like; the data are in `data.profiles`, as the training table needs them."""

from competition.data.profiles import FORMAT_ONLY, PROFILES, Profile, TrainTable, known_profile, profile_of

__all__ = ["FORMAT_ONLY", "PROFILES", "Profile", "TrainTable", "known_profile", "profile_of"]
