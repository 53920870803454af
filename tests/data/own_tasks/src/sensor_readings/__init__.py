"""A task of somebody's own, outside of ray_distill: machines told apart by their sensor readings."""
