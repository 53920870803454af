"""Store, select and freeze the texts that a teacher generates for prompts.

Imports storage, snapshots and labels; neither torch nor ray.
"""
