"""Import what the commands need, once, in the process that all tries are forked from."""

import mlflow
import torch
import transformers
from transformers import BertForSequenceClassification

import ray_distill.cli
import ray_distill.runtime.campaign
import ray_distill.tracking.mlflow_tracker

#: Named so that the imports are used.
MODULES = (mlflow, torch, transformers, BertForSequenceClassification, ray_distill)
torch.set_num_threads(1)
