"""interim by lead"""
import numpy as np
def score_case(masks, truth, comp, spacing=None, true_instances=None, predicted_instances=None):
    rows=[]
    for k,name in enumerate(comp.classes):
        t=(truth[0]==k+1) if comp.labels=="exclusive" else truth[k]==1
        a=int((t&masks[k]).sum()); s=int(t.sum()+masks[k].sum()); d=2*a/s if s else float("nan")
        rows.append({"class":name,"score":d if s else (comp.metric.both_empty if comp.metric.both_empty is not None else float("nan")),"dice":d})
    return rows
