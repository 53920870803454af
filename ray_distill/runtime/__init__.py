"""The only importer of ray: labelling, training, evaluation and jobs on a cluster."""
