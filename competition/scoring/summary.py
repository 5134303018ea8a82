"""interim by lead"""
import numpy as np
def cv_score(scores, metric): return float(scores["score"].mean())
def bootstrap_interval(scores, metric, n=2000, seed=0, groups=None):
    m=scores.groupby("id")["score"].mean().dropna().to_numpy(); r=np.random.default_rng(seed)
    b=m[r.integers(0,len(m),(n,len(m)))].mean(1); return tuple(np.quantile(b,[.025,.975]))
