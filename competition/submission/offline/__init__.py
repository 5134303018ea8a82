"""What runs inside of a bundle: no MLflow, Optuna, Ray, Lightning or albumentations, and no network."""
