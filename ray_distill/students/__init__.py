"""Stage 3, train from labels: sampler, batches, engines, loop, checkpoints, export; entered through `run`.

May import losses, models, tasks, labels, snapshots and storage; never teachers, Ray or MLflow. DeepSpeed is
imported by `deepspeed_engine` alone, and that module only by name when a configuration asks for it.
"""
