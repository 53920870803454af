"""Train students from labels (stage 3): order, batches, engines, loop, checkpoints, export.

The entry point is `run`. This room may import losses, models, tasks, labels, snapshots and storage; never teachers, Ray
or MLflow. DeepSpeed is imported by `deepspeed_engine` alone, and that module only by name when a configuration selects
it.
"""
