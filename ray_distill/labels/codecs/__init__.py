"""Named, versioned encodings of distributions as Parquet columns; one file a codec."""
