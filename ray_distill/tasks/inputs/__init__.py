"""How inputs are read: one file a modality. Imports labels and below, numpy and pyarrow; torch only when collating."""
