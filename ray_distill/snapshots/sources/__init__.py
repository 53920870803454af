"""Find source files and read their rows: Parquet, JSON Lines, CSV, folders of images."""
